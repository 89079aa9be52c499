"""Tiny random encoders with a token classifier, as TRL's PRMTrainer would save it. No hub.

BERT tokenizers have no BOS token, so a record is problem + (step + separator)*, nothing around it.
WordPiece drops whitespace: a newline is no token of it, so the separator is a visible character.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import transformers
from checkpoints import CORPUS, HEAD_SPREAD, tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SEPARATOR = ";"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def wordpiece() -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece like bert-base-uncased's, over a few words and their letters.

    Put together by hand, since tokenizers' trainer does not give the same vocabulary twice.
    """
    words = sorted({word for text in CORPUS for word in re.findall(r"[a-z]+", text.lower())})
    letters = sorted({*"".join(words), *"0123456789"})
    signs = sorted(SEPARATOR + ".,:?!+-*/=%()$")
    pieces = [*SPECIAL, *signs, *letters, *(f"##{x}" for x in letters), *words]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


# every kind with what makes it itself, small: relative attention, windows, positions behind padding
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {}),
    "roberta": ("Roberta", {"max_position_embeddings": 258, "type_vocab_size": 1}),
    "modernbert": (
        "ModernBert",
        {
            "num_hidden_layers": 4,
            "local_attention": 16,
            "global_attn_every_n_layers": 3,
            "attention_bias": True,
            "norm_bias": True,
            "classifier_bias": True,
        },
    ),
    "deberta": (
        "Deberta",
        {"relative_attention": True, "pos_att_type": "c2p|p2c", "position_biased_input": False},
    ),
    "deberta-v2": (
        "DebertaV2",
        {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 32,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
        },
    ),
}


def encoder(kind: str, folder: Path, *, seed: int = 4, **changes: Any) -> Path:
    """A token classifier whose logits spread by more than 1."""
    torch.manual_seed(seed)
    # RoBERTa's and DeBERTa's tokenizers have a BOS token, which TRL puts first
    tok = wordpiece() if kind == "bert" else tokenizer(bos=kind != "modernbert")
    name, own = KINDS[kind]
    sizes = {
        "vocab_size": len(tok),
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "initializer_range": 0.1,
        "num_labels": 2,
        "pad_token_id": 1,
        **own,
        **changes,
    }
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = getattr(transformers, f"{name}ForTokenClassification")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # transformers starts biases at 0 and gains at 1, which would hide one left out
            if name.endswith(("bias", "q_bias", "v_bias")):
                parameter.normal_(0.0, 0.3)
            elif "norm" in name.lower():
                parameter.uniform_(0.5, 1.5)
        weight = model.classifier.weight
        # separators look alike to an encoder: twice the spread makes logits spread by 1
        weight.normal_(0.0, 2 * HEAD_SPREAD / weight.shape[1] ** 0.5)
        # ... around 0, or every score would be 0 or 1
        logits = model.eval()(input_ids=torch.arange(5, 105)[None]).logits
        model.classifier.bias.sub_(logits.mean(dim=(0, 1)))
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def bert(folder: Path, *, seed: int = 4, **changes: Any) -> Path:
    """A BERT token classifier."""
    return encoder("bert", folder, seed=seed, **{"pad_token_id": 0, **changes})
