"""The truth, written with transformers alone: nothing of prm-edge is imported here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
)


def torch_scores(checkpoint: Path, problem: str, steps: list[str], separator: str) -> list[float]:
    """TRL's own recipe, written with transformers alone: class 1 at each separator's last id."""
    p = _separated(checkpoint, problem, steps, separator)
    return [float(x) for x in p[:, 1]]


def torch_kinds(
    checkpoint: Path, linear: torch.nn.Linear, problem: str, steps: list[str], separator: str
) -> torch.Tensor:
    """A second linear layer on transformers' hidden states at each separator's last id. (N, K)"""
    tokenizer, model = _classifier(checkpoint)
    ids, reads = _ids(tokenizer, problem, steps, separator)
    with torch.inference_mode():
        hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, reads]
        found: torch.Tensor = linear(hidden).double()
    return found


def pure_scores(checkpoint: Path, problem: str, steps: list[str]) -> list[float]:
    """PURE (CJReinforce/PURE): the same with newlines, and p(good) - p(bad)."""
    p = _separated(checkpoint, problem, steps, "\n")
    return [float(x) for x in p[:, 1] - p[:, 0]]


@lru_cache(maxsize=1)
def _classifier(checkpoint: Path) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    # eager, since transformers 4.57's other attention leaves out Gemma 2's cap of the scores
    model = AutoModelForTokenClassification.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    )
    return tokenizer, model.eval()


def _separated(checkpoint: Path, problem: str, steps: list[str], separator: str) -> torch.Tensor:
    tokenizer, model = _classifier(checkpoint)
    ids, reads = _ids(tokenizer, problem, steps, separator)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0, reads].double()
    return torch.softmax(logits, -1)


def _ids(
    tokenizer: Any, problem: str, steps: list[str], separator: str
) -> tuple[list[int], list[int]]:
    def plain(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids += plain(problem)
    reads = []
    for step in steps:
        ids += plain(step) + plain(separator)
        reads.append(len(ids) - 1)
    return ids, reads


@lru_cache(maxsize=1)
def _causal(checkpoint: Path) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    return tokenizer, model


def shepherd_scores(checkpoint: Path, question: str, steps: list[str]) -> list[float]:
    """The model card of peiyi9979/math-shepherd-mistral-7b-prm."""
    tokenizer, model = _causal(checkpoint)
    candidate_tokens = tokenizer.encode("+ -")[1:]
    step_tag_id = tokenizer.encode("x ки")[-1]
    output = "\n".join(f"{step} ки" for step in steps)
    input_id = torch.tensor([tokenizer.encode(f"{question} {output}")])
    with torch.no_grad():
        logits = model(input_id).logits[:, :, candidate_tokens]
        scores = logits.softmax(dim=-1)[:, :, 0]
        return [float(score) for score in scores[input_id == step_tag_id]]


def rlhflow_scores(checkpoint: Path, prompt: str, ans_list: list[str]) -> list[float]:
    """RLHFlow/RLHF-Reward-Modeling, math-rm/prm_evaluate.py: one pass for each step."""
    tokenizer, model = _causal(checkpoint)
    candidate_tokens = [tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]]
    ans_list = [answer.strip() for answer in ans_list]
    conversation: list[dict[str, str]] = []
    single_step_score = []
    for k in range(len(ans_list)):
        text = prompt + " " + ans_list[0] if k == 0 else ans_list[k]
        conversation.append({"content": text, "role": "user"})
        conversation.append({"content": "+", "role": "assistant"})
        rendered = tokenizer.apply_chat_template(conversation, tokenize=False)
        ids = tokenizer(rendered, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            # of the last three positions alone, which is all that is read
            logits = model(ids, logits_to_keep=3).logits[:, -3, candidate_tokens]
            single_step_score.append(float(logits.softmax(dim=-1)[0, 0]))
    return single_step_score


@lru_cache(maxsize=1)
def _skywork(checkpoint: Path) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    weights = load_file(checkpoint / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    config = AutoConfig.from_pretrained(checkpoint)
    config.architectures = None
    model = AutoModelForCausalLM.from_config(config).eval()
    start = next(n for n in weights if n.endswith("model.embed_tokens.weight"))
    prefix = start.removesuffix("model.embed_tokens.weight")
    model.load_state_dict(
        {n.removeprefix(prefix): v for n, v in weights.items() if not n.startswith("v_head.")}
    )
    return tokenizer, model, weights


def skywork_scores(checkpoint: Path, problem: str, steps: list[str]) -> list[float]:
    """SkyworkAI/skywork-o1-prm-inference: prepare_input and PRM_MODEL, from plain tensors."""
    tokenizer, model, weights = _skywork(checkpoint)
    input_ids = tokenizer.encode(tokenizer.bos_token + problem + "\n", add_special_tokens=False)
    flags = [0] * len(input_ids)
    step_token_id = tokenizer.encode("\n", add_special_tokens=False)[-1]
    for step in steps:
        step_ids = tokenizer.encode(step, add_special_tokens=False) if step != "" else []
        step_ids.append(step_token_id)
        input_ids.extend(step_ids)
        flags.extend([0] * (len(step_ids) - 1) + [1])
    with torch.no_grad():
        hidden = model.model(torch.tensor([input_ids])).last_hidden_state
        value = torch.nn.functional.linear(
            hidden, weights["v_head.summary.weight"], weights["v_head.summary.bias"]
        )[0, :, 0]
    return [float(p) for p, flag in zip(value.sigmoid(), flags, strict=True) if flag]


@lru_cache(maxsize=1)
def _headed(checkpoint: Path) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """A tokenizer, the backbone, and what the checkpoint has beside it."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    config = AutoConfig.from_pretrained(checkpoint)
    config.architectures = None
    backbone = AutoModel.from_config(config).eval()
    tensors = load_file(checkpoint / "model.safetensors")
    inside = {n.removeprefix("model."): v for n, v in tensors.items() if n.startswith("model.")}
    backbone.load_state_dict(inside)
    return tokenizer, backbone, {n: v for n, v in tensors.items() if not n.startswith("model.")}


def _hidden(backbone: Any, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        hidden: torch.Tensor = backbone(torch.tensor([list(ids)])).last_hidden_state[0]
        return hidden


SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


def _conversation(tokenizer: Any, system: str | None, problem: str, steps: list[str]) -> list[int]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages += [
        {"role": "user", "content": problem},
        {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    return list(tokenizer.encode(text))


def qwen_prm_scores(
    checkpoint: Path, problem: str, steps: list[str], system: str | None = SYSTEM
) -> list[float]:
    """The model card of Qwen/Qwen2.5-Math-PRM-7B; ``system`` None: of ReasonFlux-PRM-7B."""
    tokenizer, backbone, head = _headed(checkpoint)
    ids = _conversation(tokenizer, system, problem, steps)
    hidden = _hidden(backbone, ids)
    inner = torch.nn.functional.linear(hidden, head["score.0.weight"], head["score.0.bias"]).relu()
    logits = torch.nn.functional.linear(inner, head["score.2.weight"], head["score.2.bias"])
    mask = torch.tensor(ids) == tokenizer.encode("<extra_0>")[0]
    return [float(p) for p in logits.softmax(dim=-1)[mask][:, 1]]


def actprm_scores(checkpoint: Path, problem: str, steps: list[str]) -> list[float]:
    """sail-sg/ActivePRM: EnsembleModel, inference and code_snippets.py."""
    tokenizer, backbone, head = _headed(checkpoint)
    ids = _conversation(tokenizer, SYSTEM, problem, steps)
    members = head["score.model.nn1.weight"].shape[0]
    x = _hidden(backbone, ids)[None, None].repeat(members, 1, 1, 1)  # e, b, l, h
    for part in ("nn1", "nn2", "nn_out"):
        weight, bias = head[f"score.model.{part}.weight"], head[f"score.model.{part}.bias"]
        x = torch.einsum("eblh,ehm->eblm", x, weight) + bias[:, None, None, :]
        if part != "nn_out":
            x = x.relu()
    probabilities = x.squeeze(-1).sigmoid()  # e, b, l
    mask = torch.tensor(ids) == tokenizer.encode("<extra_0>")[0]
    return [float(p) for p in probabilities[:, 0, mask].mean(dim=0)]


def reasoneval_scores(
    checkpoint: Path, question: str, steps: list[str], size: str
) -> tuple[list[float], list[float]]:
    """GAIR-NLP/ReasonEval, codes/examples.py: validity and redundancy."""
    tokenizer, backbone, head = _headed(checkpoint)
    step_separator = f"{tokenizer.pad_token}"
    combined_steps = ""
    for step in steps:
        combined_steps += step + step_separator
    prompt = f"Question:\n{question}\nAnswer:\nLet's think step by step.\n"
    tokenized_result = tokenizer(prompt + step_separator + combined_steps)["input_ids"]
    separator_token_id = tokenizer(step_separator)["input_ids"][-1]
    labeled_token_indices = []
    adjusted_token_ids = []
    separator_count = 0
    for idx, token_id in enumerate(tokenized_result):
        if token_id == separator_token_id:
            labeled_token_indices.append(idx - 1 - separator_count)
            separator_count += 1
        else:
            adjusted_token_ids.append(token_id)
    if size == "7B":
        adjusted_token_ids = [1, *adjusted_token_ids]
        labeled_token_indices = labeled_token_indices[2:]
    else:
        labeled_token_indices = labeled_token_indices[1:]
    assert len(labeled_token_indices) == len(steps)
    hidden = _hidden(backbone, adjusted_token_ids)[labeled_token_indices]
    scores = torch.nn.functional.linear(hidden, head["score_head.weight"]).softmax(dim=-1)
    return [float(s[1] + s[2]) for s in scores], [float(s[1]) for s in scores]


def _tagged_scores(
    checkpoint: Path, text: str, tag: str, rows: Sequence[str], good: int
) -> list[float]:
    tokenizer, model = _causal(checkpoint)
    candidate_tokens = [tokenizer.encode(row)[-1] for row in rows]
    step_tag_id = tokenizer.encode(tag)[-1]
    input_id = torch.tensor([tokenizer.encode(text)])
    with torch.no_grad():
        logits = model(input_id).logits[:, :, candidate_tokens]
    scores = logits.softmax(dim=-1)[:, :, good]
    return [float(score) for score in scores[input_id == step_tag_id]]


def versaprm_scores(checkpoint: Path, question: str, solution: list[str]) -> list[float]:
    """UW-Madison-Lee-Lab/VersaPRM: the usage of its model cards."""
    text = question + " \n\n" + " \n\n\n\n".join(solution) + " \n\n\n\n"
    return _tagged_scores(checkpoint, text, " \n\n\n\n", ("-", "+"), 1)


def math_psa_scores(checkpoint: Path, question: str, steps: list[str]) -> list[float]:
    """openreasoner/openr, prm/code/test_qwen.py: its output has a blank after every tag."""
    output = " ".join(f"{step} \n\n\n\n\n" for step in steps)
    return _tagged_scores(checkpoint, f"{question} {output}", " \n\n\n\n\n", (" +", " -"), 0)


def er_prm_scores(checkpoint: Path, question: str, steps: list[str]) -> list[float]:
    """hanningzhang/ER-PRM, evaluation/evaluate_math_reward_model.py, on Math-Shepherd's texts."""
    sample = f"{question} " + "\n".join(f"{step} ки" for step in steps)
    text = sample.replace(" ки\n", " ки")
    return _tagged_scores(checkpoint, text, " ки", (" +", " -"), 0)


def llemma_scores(checkpoint: Path, question: str, steps: list[str]) -> list[float]:
    """Edward-Sun/easy-to-hard: models/reward_model.py and inference_reward.py, with a sigmoid."""
    tokenizer, model = _causal(checkpoint)
    prompt = f"# Question\n\n{question}\n\n# Solution\n\n"
    output = "".join(f"{step}\n\n" for step in steps)
    ids = [tokenizer.bos_token_id, *tokenizer.encode(prompt + output, add_special_tokens=False)]
    with torch.no_grad():
        rewards = model(torch.tensor([ids])).logits[0].mean(dim=-1).sigmoid()
    newline = tokenizer.encode("x\n", add_special_tokens=False)[-1]
    pair = f" {newline}, {newline},"
    joined = "".join(f" {token}," for token in ids)
    scores = []
    position = 0
    segments = joined.split(pair)
    assert segments[-1] == ""
    for number, segment in enumerate(segments[:-1]):
        position += segment.count(",") + 2
        if number >= prompt.count("\n\n"):
            scores.append(float(rewards[position - 2]))
    return scores


def pqm_scores(checkpoint: Path, question: str, steps: list[str]) -> list[float]:
    """WindyLee0822/Process_Q_Model: value_model.py and bon_eval_hf.py."""
    tokenizer, backbone, head = _headed(checkpoint)
    query = (
        "Below is an instruction that describes a task.\nWrite a response that appropriately "
        f"completes the request.\n\n### Instruction:\n{question}\n\n### Response: Let's think "
        "step by step"
    )
    answer = " [PRM]\n".join(steps) + " [PRM]"
    ids = tokenizer.encode(f"{query}\n{answer}", add_special_tokens=False)
    value = torch.nn.functional.linear(
        _hidden(backbone, ids), head["v_head.summary.weight"], head["v_head.summary.bias"]
    ).squeeze(-1)
    tag = tokenizer.encode("[PRM]", add_special_tokens=False)[-1]
    return [float(value[at]) for at, token in enumerate(ids) if token == tag]


def trajectory_scores(checkpoint: Path, problem: str, steps: list[str]) -> list[float]:
    """Gen-Verse/ReasonFlux, ReasonFlux_PRM/utils/rm_utils.py: one reward for the completion."""
    tokenizer, model = _causal(checkpoint)
    state = torch.load(checkpoint / "reward_head.pt", weights_only=True)
    (completion,) = steps
    encoded = tokenizer(problem + completion, return_tensors="pt")
    with torch.no_grad():
        hidden = model.model(**encoded, output_hidden_states=True).hidden_states[-1]
        final_hidden = hidden[0, encoded["attention_mask"].sum() - 1]
        reward = torch.nn.functional.linear(final_hidden, state["weight"], state["bias"])
    return [float(reward.sigmoid())]
