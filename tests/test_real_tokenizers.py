"""Our encoding against TRL's and transformers', id for id, with published tokenizers.

The files come from ``python tests/real_tokenizers.py fetch DIR``; PRM_EDGE_TEST_TOKENIZERS names
DIR. Comparisons with TRL's own tokenize_row also need trl==1.13.0.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import real_tokenizers

from prm_edge_export.families import FAMILIES, QWEN_SYSTEM, QWEN_TAG, Request
from prm_edge_export.proof import load_texts
from prm_edge_export.tokenizer_files import TokenizerFiles, read_tokenizer
from prm_edge_runtime.encoding import RecipeEncoder
from prm_edge_runtime.recipe import Recipe, Slot, Split, Tokens

pytestmark = [
    pytest.mark.real_tokenizers,
    # importing TRL warns that its PRMTrainer is experimental
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]

Record = tuple[str, Sequence[str]]
NAMES = tuple(real_tokenizers.PACKAGES)
LOADERS = ("auto", "file")
SEPARATORS = ("\n", " ки", "\n\n###\n\n")
REAL_RECORDS = 200

HOSTILE: tuple[Record, ...] = (
    ("", [""]),
    ("", ["", "", ""]),
    (" ", [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000"]),
    ("\nstarts and ends\n", ["\n\nstarts", "ends\n\n", "\n", "\n\n\n\n", "a\n\nb", ".\n", "\n."]),
    ("1234567890 12.5 1,000,000", ["3+4=7", "3 + 4 = 7", "-5 - -5", "2**10", "½ + ⅓", "x²"]),
    ("Größe? Ωμέγα, здравствуй", ["ки", " ки", "ки ки", "+", " +", "-", " -", "▁", "▁▁x"]),
    ("数学は楽しい。", ["答案是 42。", "수학", "ไทยไม่มีช่องว่าง", "हिन्दी", "မြန်မာ"]),
    ("שלום עולם 12", ["مرحبا ١٢٣", "\u200fRTL mark\u200e", "\u202eoverride\u202c", "א1ב2"]),
    ("emoji 👩\u200d🏫👍🏽🇩🇪", ["🙂🙂🙂", "❤\ufe0f", "\U0001f9ee = 4", "#\ufe0f\u20e3"]),
    ("e\u0301 and é", ["\u1e9b\u0323", "ﬁ ligature", "Å Å", "\u0958", "\u2126"]),
    ("\u0000\u0001\u0007\u001b[0m", ["\u007f\u0080\u009f", "\ufeffBOM", "\ufffd\ufffe\uffff"]),
    ("\u2028line\u2029paragraph", ["\u000b\u000c\u0085", "zero\u200bwidth", "soft\u00adhyphen"]),
    ("I'm you'RE he'll 'd", ["don't", "DON'T", "'s's's", "it’s", "'" * 9]),
    ("def f(x):\n    return x  # 4", ["\\frac{1}{2}", "$$x^{2}$$", "\\boxed{}", "{{x}}", "<b>"]),
    ("a" * 3000, ["ab" * 3000, " " * 500, "\n" * 300, "9" * 700, "é" * 500, "🙂" * 300]),
    ("word " * 2000, ["The next step is long. " * 400]),
    ("\U0010ffff\U000e0001", ["𝒳 = 𝟙", "𐍈", "\ud7ff\ue000"]),
    ("[INST] <<SYS>> ### User:", ["Human:", "Assistant: +", "[PAD]", "[UNK]", "##x", "<0x0A>"]),
)
SPELLED = ("{0}", "{0}{0}", "a{0}b", " {0} ", "\n{0}\n", "{0}\n\n", "x = {0}, so {0}.", "<{0}>")


def random_records(count: int = 150) -> list[Record]:
    """Texts put together at random from what tokenizers cut at; the same in every run."""
    choose = random.Random(11)
    pieces = [c for problem, steps in HOSTILE[:14] for text in (problem, *steps) for c in text]
    pieces += ["\n", "\n\n", " ", "  ", ".", "the ", "= ", "12", "ing", "<|", "|>", "'s", "\u0301"]
    records = []
    for _ in range(count):
        texts = ["".join(choose.choices(pieces, k=choose.randint(0, 40))) for _ in range(4)]
        records.append((texts[0], texts[1:]))
    return records


def worked_solutions() -> list[Record]:
    """The bundled worked solutions, and ProcessBench where PRM_EDGE_TEST_DATA has it."""
    texts, _ = load_texts(None)
    records: list[Record] = [(text.problem, text.steps) for text in texts]
    folder = Path(os.environ.get("PRM_EDGE_TEST_DATA", "absent"))
    for path in sorted(folder.glob("processbench_gsm8k*")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in islice(lines, REAL_RECORDS)]
        records += [(row["problem"], row["steps"]) for row in rows]
    return records


def folder_of(name: str) -> Path:
    root = os.environ.get(real_tokenizers.VARIABLE)
    if not root or not all((Path(root) / name / file).is_file() for file in real_tokenizers.FILES):
        pytest.skip(
            f"no tokenizer {name} in the folder named by {real_tokenizers.VARIABLE}: "
            "python tests/real_tokenizers.py fetch DIR"
        )
    return Path(root) / name


@cache
def loaded(folder: Path, loader: str) -> Any:
    """A tokenizer as a trainer may hold it.

    ``auto``: whatever class transformers chooses, which may rebuild it (transformers 5 does, for
    Llama and Qwen2). ``file``: tokenizer.json as it stands.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    chosen = AutoTokenizer if loader == "auto" else PreTrainedTokenizerFast
    return chosen.from_pretrained(folder)


@cache
def saved(folder: Path, loader: str) -> TokenizerFiles:
    """The same tokenizer as a trainer saves it beside its checkpoint."""
    with tempfile.TemporaryDirectory() as target:
        loaded(folder, loader).save_pretrained(target)
        return read_tokenizer(Path(target))


@pytest.fixture
def tokenize_row() -> Callable[..., dict[str, list[int]]]:
    """TRL's own tokenisation."""
    pytest.importorskip("trl", reason="needs trl==1.13.0, the last release with PRMTrainer")
    from prm_edge.record import _tokenize_row

    return _tokenize_row()


def encoder_for(family: str, files: TokenizerFiles, tokenizer: Any, separator: str | None) -> Any:
    request = Request(files=files, tokenizer=tokenizer, separator=separator, good=1)
    return RecipeEncoder(files.raw, FAMILIES[family].build(request))


def spells(record: Record, added: Sequence[str]) -> bool:
    text = "\0".join((record[0], *record[1]))
    return any(token in text for token in added)


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", NAMES)
def test_encoding_is_that_of_trl(
    name: str,
    loader: str,
    separator: str,
    tokenize_row: Callable[..., dict[str, list[int]]],
) -> None:
    tokenizer, files = loaded(folder_of(name), loader), saved(folder_of(name), loader)
    encoder = encoder_for("trl", files, tokenizer, separator)
    records = [*HOSTILE, *random_records()]
    if separator == "\n" and loader == "auto":
        records += worked_solutions()
    compared = 0
    for problem, steps in records:
        if spells((problem, steps), list(files.added)):
            continue
        row = tokenize_row(
            {"prompt": problem, "completions": steps, "labels": [True] * len(steps)},
            tokenizer,
            step_separator=separator,
            max_length=None,
            max_completion_length=None,
            train_on_last_step_only=False,
            is_eval=False,
        )
        encoded = encoder.encode(problem, steps)
        assert encoded.ids.tolist() == row["input_ids"], (problem[:80], [s[:80] for s in steps])
        labelled = [i for i, label in enumerate(row["labels"]) if label != -100]
        assert encoded.reads.tolist() == labelled
        compared += 1
    assert compared >= len(records) - 5


@pytest.mark.parametrize("name", NAMES)
def test_text_that_spells_a_token_is_plain_text(name: str) -> None:
    tokenizer, files = loaded(folder_of(name), "file"), saved(folder_of(name), "file")
    encoder = encoder_for("trl", files, tokenizer, "\n")
    bos = 0 if tokenizer.bos_token_id is None else 1
    separator = len(tokenizer("\n", add_special_tokens=False)["input_ids"])
    forbidden = set(files.added.values())
    special = set(tokenizer.all_special_tokens)
    chosen = [*list(files.added)[:30], "<extra_0>", "<|reserved_special_token_247|>"]
    for token in chosen:
        for pattern in SPELLED:
            text = pattern.format(token)
            encoded = encoder.encode(text, [text, text])
            ids = encoded.ids.tolist()[bos:]
            assert not forbidden & set(ids), text
            assert len(encoded.reads) == 2
            step = encoder.encode("", [text]).ids.tolist()[bos:-separator]
            decoded = tokenizer.backend_tokenizer.decode(step, skip_special_tokens=False)
            assert decoded == text
            if token in special:
                # transformers' own way to the same end, which knows special tokens only
                plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
                assert ids[: len(plain["input_ids"])] == plain["input_ids"]


@pytest.fixture
def qwen_prm(tmp_path: Path) -> Any:
    """Qwen2.5's tokenizer with the one change of the PRM's: <|quad_end|> is called <extra_0>."""
    source = folder_of("qwen2_5")
    target = tmp_path / "prm"
    target.mkdir()
    for file in real_tokenizers.FILES:
        text = (source / file).read_text(encoding="utf-8").replace("<|quad_end|>", QWEN_TAG)
        (target / file).write_text(text, encoding="utf-8")
    return target


def model_card_encoding(
    tokenizer: Any, system: str | None, problem: str, steps: Sequence[str]
) -> tuple[list[int], list[int]]:
    """The code of the Qwen2.5-Math-PRM model card, up to the last score."""
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": problem},
        {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
    ]
    conversation = tokenizer.apply_chat_template(
        messages if system is not None else messages[1:],
        tokenize=False,
        add_generation_prompt=False,
    )
    ids = tokenizer.encode(conversation)
    tag = tokenizer.encode("<extra_0>")[0]
    reads = [index for index, token in enumerate(ids) if token == tag]
    return ids[: reads[-1] + 1], reads


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("family", "system"), [("qwen2.5-math-prm", QWEN_SYSTEM), ("reasonflux-prm", None)]
)
def test_encoding_is_that_of_the_chat_template(
    qwen_prm: Path, family: str, system: str | None, loader: str
) -> None:
    tokenizer = loaded(qwen_prm, loader)
    files = read_tokenizer(qwen_prm)
    encoder = encoder_for(family, files, tokenizer, None)
    records = [*HOSTILE, *random_records(), *worked_solutions()]
    compared = 0
    for problem, steps in records:
        if spells((problem, steps), list(files.added)):
            continue
        ids, reads = model_card_encoding(tokenizer, system, problem, steps)
        encoded = encoder.encode(problem, steps)
        assert encoded.ids.tolist() == ids, (problem[:80], [s[:80] for s in steps])
        assert encoded.reads.tolist() == reads
        compared += 1
    assert compared >= len(records) - 5


def test_a_student_who_types_the_tag_does_not_shift_the_scores(qwen_prm: Path) -> None:
    tokenizer = loaded(qwen_prm, "file")
    files = read_tokenizer(qwen_prm)
    encoder = encoder_for("qwen2.5-math-prm", files, tokenizer, None)
    tag = files.added[QWEN_TAG]
    for token in files.added:
        for pattern in SPELLED:
            text = pattern.format(token)
            encoded = encoder.encode(text, [text, "honest", text])
            assert [i for i, t in enumerate(encoded.ids) if t == tag] == encoded.reads.tolist()
            assert len(encoded.reads) == 3


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3"])
def test_encoding_is_that_of_the_docstring_of_trl(name: str) -> None:
    # huggingface/trl, docstring of PRMTrainer.tokenize_row (tokenizer of Qwen2.5-0.5B); its list
    # of labels lacks the prompt, so the read positions are those of the separators
    tokenizer, files = loaded(folder_of(name), "file"), saved(folder_of(name), "file")
    encoder = encoder_for("trl", files, tokenizer, "\n")
    encoded = encoder.encode(
        "Which number is larger, 9.8 or 9.11?", ["11 is greater than 8.", "Hence, 9.11 > 9.8."]
    )
    prompt = [23085, 1372, 374, 8131, 11, 220, 24, 13, 23, 476, 220, 24, 13, 16, 16, 30]
    first = [16, 16, 374, 7046, 1091, 220, 23, 13, 198]
    second = [39, 763, 11, 220, 24, 13, 16, 16, 861, 220, 24, 13, 23, 13, 198]
    assert encoded.ids.tolist() == prompt + first + second
    assert encoded.reads.tolist() == [24, 39]


# What published PRMs rely on; sources in the families' own code and cards.
@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("qwen2_5", {"\n": 198, "\n\n": 271, ".\n": 624, " \n\n\n\n": 22701, " +": 488, " -": 481}),
        ("qwen3", {"\n": 198, "\n\n": 271, ".\n\n": 382, " \n\n\n\n\n": 76325, "ки": 16748}),
        ("llama3_1", {"\n\n": 271, " \n\n\n\n": 23535, "ки": 17165, " ки": 116624, "+": 10}),
        ("llama2", {"ки": 12902, "+": 648, "-": 387}),  # "▁" comes first, as in Mistral's
    ],
)
def test_spelling_gives_the_ids_that_published_models_read_at(
    name: str, tokens: dict[str, int]
) -> None:
    raw = (folder_of(name) / "tokenizer.json").read_bytes()
    encoder = RecipeEncoder(raw, plain_recipe(tokens))
    for text, token in tokens.items():
        assert encoder.spell(text) == (token,)


def plain_recipe(tokens: dict[str, int]) -> Recipe:
    from prm_edge_runtime.recipe import Score

    text, token = next(iter(tokens.items()))
    return Recipe(
        family="test",
        encode="separate",
        prompt=(Slot(name="problem"),),
        between=(),
        step=(Slot(name="step"), Tokens(ids=(token,), text=text, read=-1)),
        split=Split(separator="\n"),
        logits=2,
        score=Score(kind="softmax", good=1),
        aggregates=("min",),
        aggregate="min",
        label_meaning="on_path",
    )
