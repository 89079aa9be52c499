"""A real GRPO run of two steps with a package as its reward: ``make test-trl``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prm_edge_runtime import Scorer

TRL = "needs trl==1.13.0 and datasets"
pytest.importorskip("trl", reason=TRL)
pytest.importorskip("datasets", reason=TRL)
pytestmark = [
    pytest.mark.trl,
    # TRL, datasets and transformers deprecate each other's arguments; ours are checked elsewhere
    pytest.mark.filterwarnings("ignore"),
]


def test_grpo_trains_on_the_rewards_of_a_package(tiny_package: Path, tmp_path: Path) -> None:
    import torch
    import trl_checkpoint
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    from prm_edge.integrations.trl import reward_function, step_spans

    tokenizer = trl_checkpoint.tokenizer("llama")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(**trl_checkpoint.SHAPE, vocab_size=len(tokenizer),
                    pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    )  # fmt: skip
    rows = [{"prompt": row["prompt"], "answer": "x"} for row in trl_checkpoint.records()[:4]]
    calls: list[list[float | None]] = []
    with Scorer.load(tiny_package) as scorer:
        inner = reward_function(scorer, by="min")

        def reward(prompts: list[str], completions: list[str], **columns: Any) -> Any:
            assert len(columns["answer"]) == len(prompts)
            calls.append(inner(prompts, completions, **columns))
            spans = step_spans(scorer, tokenizer, prompts[0], columns["completion_ids"][0])
            assert [span.step for span in spans] == scorer.split(
                tokenizer.decode(columns["completion_ids"][0], skip_special_tokens=True)
            )
            return calls[-1]

        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=GRPOConfig(
                output_dir=str(tmp_path), max_steps=2, num_generations=4, use_cpu=True,
                per_device_train_batch_size=4, max_completion_length=12, bf16=False,
                report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
                learning_rate=1e-3,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )  # fmt: skip
        before = {name: value.clone() for name, value in model.named_parameters()}
        trainer.train()
    assert trainer.state.global_step == 2
    assert len(calls) == 2
    rewards = [value for call in calls for value in call if value is not None]
    assert len(rewards) >= 4
    assert all(0 <= value <= 1 for value in rewards)
    logged = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    known = [value for value in calls[0] if value is not None]
    assert logged[0] == pytest.approx(sum(known) / len(known), abs=1e-4)
    assert any(not torch.equal(before[name], value) for name, value in model.named_parameters())


def test_its_hub_searches_with_a_package(tiny_package: Path) -> None:
    pytest.importorskip("its_hub", reason="needs its_hub")
    import asyncio

    from its_hub.core.algorithms.particle_gibbs import ParticleFiltering
    from its_hub.core.lms.step_generation import StepGeneration

    from prm_edge.integrations.its_hub import ProcessRewardModel

    class Stub:
        """Writes numbered steps and stops."""

        async def agenerate(self, messages: Any, stop: Any = None, **options: Any) -> Any:
            batch = messages if isinstance(messages[0], list) else [messages]
            return [{"role": "assistant", "content": f"step of {len(m)}"} for m in batch]

    with Scorer.load(tiny_package) as scorer:
        prm = ProcessRewardModel(scorer, by="last")
        search = ParticleFiltering(StepGeneration(max_steps=3, step_token="\n\n"), prm=prm)
        best = asyncio.run(search.ainfer(Stub(), "What is 1 + 1?", budget=4))
    assert "step of" in best["content"]
