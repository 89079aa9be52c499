"""The truth, written with transformers alone: nothing of prm-edge is imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
)


def torch_scores(checkpoint: Path, problem: str, steps: list[str], separator: str) -> list[float]:
    """TRL's own recipe, written with transformers alone: class 1 at each separator's last id."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForTokenClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def plain(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids += plain(problem)
    reads = []
    for step in steps:
        ids += plain(step) + plain(separator)
        reads.append(len(ids) - 1)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0, reads].double()
    return [float(p) for p in torch.softmax(logits, -1)[:, 1]]


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
            logits = model(ids).logits[:, -3, candidate_tokens]
            single_step_score.append(float(logits.softmax(dim=-1)[0, 0]))
    return single_step_score


def skywork_scores(
    checkpoint: Path, weights: dict[str, torch.Tensor], problem: str, steps: list[str]
) -> list[float]:
    """SkyworkAI/skywork-o1-prm-inference: prepare_input and PRM_MODEL, from plain tensors."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    config = AutoConfig.from_pretrained(checkpoint)
    config.architectures = None
    model = AutoModelForCausalLM.from_config(config).eval()
    start = next(n for n in weights if n.endswith("model.embed_tokens.weight"))
    prefix = start.removesuffix("model.embed_tokens.weight")
    model.load_state_dict(
        {n.removeprefix(prefix): v for n, v in weights.items() if not n.startswith("v_head.")}
    )
    input_ids = tokenizer.encode(tokenizer.bos_token + problem + "\n", add_special_tokens=False)
    flags = [0] * len(input_ids)
    step_token_id = tokenizer.encode("\n", add_special_tokens=False)[-1]
    for step in steps:
        step_ids = tokenizer.encode(step, add_special_tokens=False) if step != "" else []
        step_ids.append(step_token_id)
        input_ids.extend(step_ids)
        flags.extend([0] * (len(step_ids) - 1) + [1])
    with torch.no_grad():
        hidden = model(torch.tensor([input_ids]), output_hidden_states=True).hidden_states[-1]
        value = torch.nn.functional.linear(
            hidden, weights["v_head.summary.weight"], weights["v_head.summary.bias"]
        )[0, :, 0]
    return [float(p) for p, flag in zip(value.sigmoid(), flags, strict=True) if flag]
