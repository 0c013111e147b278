"""Text as tokens: tokenizers for CTC that stock transformers loads.

A tokenizer's folder holds what `AutoTokenizer` and `AutoProcessor` read, `text.json` (how text is
normalised) and, for subwords, SentencePiece's `tokenizer.model`. CTC's blank is the padding token.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

from distilkit import config, leftovers
from distilkit.audio import SAMPLE_RATE
from distilkit.errors import DistilkitError, enclosed
from distilkit.normalisation import normalise
from distilkit.wording import first_line

PAD, UNKNOWN = "<pad>", "<unk>"  # ids 0 and 1 of every tokenizer that is made here
DELIMITER = "|"  # ends a word, in tokenizers of characters
SPACE = "▁"  # begins a word, in tokenizers of subwords
TEXT_FILE = "text.json"
MODEL_FILE = "tokenizer.model"
FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.json")  # transformers' own
HINT = "distilkit tokenizer DATA --out DIR"
WORDS = 50  # words of text for each subword that `auto` makes,
MOST = 1000  # and the most of them

# ------------------------------------------------------------------------------------ tokenizers


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A tokenizer for CTC, and how text is brought into its form."""

    stock: Any  # transformers' tokenizer
    text: config.Text
    model: bytes | None = None  # SentencePiece's, where there is one

    def __len__(self) -> int:
        """Tokens, the blank and the unknown one included: the size of the model's head."""
        return len(self.stock)

    @property
    def blank(self) -> int:
        """The id of CTC's blank, which is the padding token's."""
        return int(self.stock.pad_token_id)

    @cached_property
    def tokens(self) -> list[str]:
        """Every token by its id; that which ends a word is `DELIMITER`, whatever it is called."""
        ends = getattr(self.stock, "word_delimiter_token", None)
        names = self.stock.convert_ids_to_tokens(list(range(len(self))))
        return [DELIMITER if ends and name == ends else str(name) for name in names]

    @cached_property
    def characters(self) -> frozenset[str]:
        """All characters that have a token of their own, and the space."""
        special = set(self.stock.all_special_tokens) | {DELIMITER, SPACE}
        return frozenset({" ", *(x for x in self.tokens if len(x) == 1 and x not in special)})

    def normalise(self, text: str) -> str:
        """Text in the form that the tokenizer knows."""
        return normalise(text, self.text)

    def unknown(self, text: str) -> list[str]:
        """The characters of normalised text that no token has, each once, in order."""
        return [char for char in dict.fromkeys(text) if char not in self.characters]

    def encode(self, text: str) -> list[int]:
        """The tokens of normalised text; an unknown character becomes the unknown token."""
        ids: list[int] = self.stock(text, add_special_tokens=False)["input_ids"]
        return ids

    def decode(self, ids: Iterable[int], *, frames: bool = True) -> str:
        """Text of tokens.

        Args:
            ids: the token of each frame: repeats are one token, blanks are none. With `frames`
                false the tokens themselves, as `encode` gives them: a repeat is a doubled letter.
            frames: which of the two.

        Source: Graves et al., Connectionist Temporal Classification, ICML 2006, section 3.1.
        """
        text: str = self.stock.decode(
            [int(token) for token in ids], group_tokens=frames, clean_up_tokenization_spaces=False
        )
        return " ".join(text.split())


def train(texts: Iterable[str], settings: config.Tokenizer, text: config.Text) -> Tokenizer:
    """Build a tokenizer from transcripts; the same ones give the same tokenizer.

    Args:
        texts: transcripts as they are; they are normalised here.
        settings: which kind, and how many tokens.
        text: how text is normalised, now and whenever the tokenizer is used.

    Raises:
        DistilkitError: no text, or a size that the text does not allow; says the one that works.
    """
    lines = [line for line in (normalise(line, text) for line in texts) if line]
    if not lines:
        raise DistilkitError(
            "the transcripts hold no text once they are normalised",
            "other transcripts, or --punctuation keep",
        )
    return KINDS[settings.kind](lines, settings, text)


def _counted(lines: Iterable[str]) -> int:
    """How many characters there are, the space left out."""
    return len(set().union(*lines) - {" "})


def _characters(lines: Sequence[str], settings: config.Tokenizer, text: config.Text) -> Tokenizer:
    """A token for each character, as wav2vec 2.0 has it (arXiv 2006.11477)."""
    size = _counted(lines) + 3
    if settings.size != "auto" and settings.size != size:
        raise DistilkitError(
            f"`--vocab-size {settings.size}` does not fit: a token for each character of this text "
            f"makes {size}, the blank, the unknown one and the space counted",
            f"--vocab-size {size}, or leave it out",
        )
    names = [PAD, UNKNOWN, DELIMITER, *sorted(set().union(*lines) - {" "})]
    return Tokenizer(stock=_stock_characters(names), text=text)


def _stock_characters(names: Sequence[str]) -> Any:
    """A Wav2Vec2CTCTokenizer without the `<s>` and `</s>` that it would add."""
    from transformers import Wav2Vec2CTCTokenizer

    with leftovers.temporary() as folder:
        path = folder / "vocab.json"
        path.write_text(json.dumps({name: place for place, name in enumerate(names)}))
        return Wav2Vec2CTCTokenizer(
            str(path),
            pad_token=PAD,
            unk_token=UNKNOWN,
            bos_token=None,
            eos_token=None,
            word_delimiter_token=DELIMITER,
            clean_up_tokenization_spaces=False,
        )


def _subwords(lines: Sequence[str], settings: config.Tokenizer, text: config.Text) -> Tokenizer:
    """Subwords by SentencePiece, in a tokenizer of transformers that knows CTC's rules."""
    least = _counted(lines) + 3
    words = sum(line.count(" ") + 1 for line in lines)
    size = settings.size if settings.size != "auto" else max(least, min(MOST, words // WORDS))
    if size < least:
        raise DistilkitError(
            f"`--vocab-size {size}` is too small: the characters of this text need {least}",
            f"--vocab-size {least}",
        )
    model, most = _sentencepiece(lines, settings.kind, size)
    if model is None and settings.size == "auto":
        model, _ = _sentencepiece(lines, settings.kind, most)
    if model is None:
        raise DistilkitError(
            f"`--vocab-size {size}` is too large: this text gives at most {most} tokens",
            f"--vocab-size {most}",
        )
    return Tokenizer(stock=_stock_subwords(model, settings.kind), text=text, model=model)


def _sentencepiece(lines: Sequence[str], kind: str, size: int) -> tuple[bytes | None, int]:
    """A model of `size` pieces, or none and the most pieces that the text gives.

    Source: Kudo and Richardson, SentencePiece, EMNLP 2018 (arXiv 1808.06226).
    """
    import sentencepiece

    written = BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            model_type=kind,
            vocab_size=size,
            character_coverage=1.0,
            normalization_rule_name="identity",
            pad_id=0,
            pad_piece=PAD,
            unk_id=1,
            unk_piece=UNKNOWN,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,
            minloglevel=2,
            # Longer lines would be left out without a word; less than 10 is refused.
            max_sentence_length=max(10, *(len(line.encode()) + 1 for line in lines)),
        )
    except RuntimeError as error:
        found = re.search(r"value <= (\d+)", str(error))
        if found is None:
            raise DistilkitError(f"SentencePiece: {error}", "--kind char") from error
        return None, int(found[1])
    return written.getvalue(), size


def _stock_subwords(model: bytes, kind: str) -> Any:
    """SentencePiece's model as a fast tokenizer whose decoding joins repeats and drops blanks."""
    import sentencepiece
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import ParakeetTokenizer

    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    names = [pieces.id_to_piece(place) for place in range(pieces.get_piece_size())]
    if kind == "unigram":
        scores = [(name, pieces.get_score(place)) for place, name in enumerate(names)]
        fast = Fast(models.Unigram(scores, unk_id=1, byte_fallback=False))
    else:
        ids = {name: place for place, name in enumerate(names)}
        fast = Fast(models.BPE(ids, _merges(ids), unk_token=UNKNOWN, fuse_unk=True))
    fast.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=SPACE, prepend_scheme="always", split=True
    )
    fast.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always", split=True)
    return ParakeetTokenizer(
        tokenizer_object=fast,
        pad_token=PAD,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def _merges(ids: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs that give each token when joined; early tokens first, as SentencePiece joins."""
    found = []
    for name, place in ids.items():
        pairs = [(name[:cut], name[cut:]) for cut in range(1, len(name))]
        if name not in (PAD, UNKNOWN):
            found += [(place, ids[a], ids[b], a, b) for a, b in pairs if a in ids and b in ids]
    return [(a, b) for _, _, _, a, b in sorted(found)]


KINDS: dict[
    config.TokenizerKind, Callable[[Sequence[str], config.Tokenizer, config.Text], Tokenizer]
] = {"char": _characters, "unigram": _subwords, "bpe": _subwords}


# ----------------------------------------------------------------------------------------- files


def save(
    tokenizer: Tokenizer,
    folder: Path,
    normalise_waves: bool = False,
    masks: bool | None = None,
) -> None:
    """Write a tokenizer into a folder that is being made, so that `AutoProcessor` reads it too.

    Args:
        tokenizer: what is written.
        folder: where; made if need be.
        normalise_waves: whether the model that goes with it hears waveforms of zero mean and unit
            variance.
        masks: whether its batches come with an attention mask; None for as usual with these waves.
    """
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Processor

    folder.mkdir(parents=True, exist_ok=True)
    features = Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=SAMPLE_RATE,
        padding_value=0.0,
        do_normalize=normalise_waves,
        return_attention_mask=normalise_waves if masks is None else masks,
    )
    features.save_pretrained(folder)  # preprocessor_config.json, which transformers 4 wants
    Wav2Vec2Processor(features, tokenizer.stock).save_pretrained(folder)
    settings = tokenizer.text.model_dump_json(indent=2)
    (folder / TEXT_FILE).write_text(settings + "\n", encoding="utf-8")
    if tokenizer.model is not None:
        (folder / MODEL_FILE).write_bytes(tokenizer.model)


def load(folder: Path) -> Tokenizer:
    """Read a tokenizer that was made here, or any other for CTC that transformers loads.

    Where nothing says how text is normalised, it is guessed from the characters that have tokens.

    Raises:
        DistilkitError: no such folder, no tokenizer in it, damaged files, or one that is not for CTC.
    """
    from transformers import AutoTokenizer, Wav2Vec2CTCTokenizer

    if not folder.is_dir():
        raise DistilkitError(f"no tokenizer in `{folder}`: no such folder", HINT)
    if not any((folder / name).is_file() for name in FILES):
        raise DistilkitError(f"no tokenizer in `{folder}`: none of {', '.join(FILES)}", HINT)
    enclosed(folder)
    try:
        stock = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        problem = _problem(stock)
    except Exception as error:  # transformers and its parsers raise what they like
        said = first_line(error)
        raise DistilkitError(f"no tokenizer in `{folder}`: {said}", HINT) from error
    if problem:
        raise DistilkitError(f"the tokenizer in `{folder}` is not for CTC: {problem}", HINT)
    if isinstance(stock, Wav2Vec2CTCTokenizer):
        stock.do_lower_case = False  # it would write upper case and read lower case
    path, model = folder / TEXT_FILE, folder / MODEL_FILE
    try:
        text = _guessed(stock)
        if path.is_file():
            text = config.Text.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        said = " ".join(str(error).partition(" [type=")[0].split())
        raise DistilkitError(f"`{path}` is damaged: {said}", HINT) from error
    return Tokenizer(stock=stock, text=text, model=model.read_bytes() if model.is_file() else None)


def _problem(stock: Any) -> str | None:
    """Why a tokenizer cannot serve for CTC, if it cannot."""
    if not isinstance(stock.model_max_length, int | float):
        return "its `model_max_length` is no number"
    if not isinstance(getattr(stock, "replace_word_delimiter_char", ""), str):
        return "its `replace_word_delimiter_char` is no text"
    if stock.pad_token_id is None:
        return "it has no padding token, CTC's blank"
    ids = sorted(stock.get_vocab().values())
    if ids != list(range(len(stock))):
        return "its tokens are not numbered from 0 without gaps"
    token = next((x for x in ids if x not in stock.all_special_ids), None)
    if token is None:
        return "it has no tokens"
    if None in stock("a\ue000", add_special_tokens=False)["input_ids"]:
        return "it has no token for characters that are unknown"
    stock.decode(ids)  # a token that cannot be written fails here
    alike = {stock.decode(path) for path in ([token], [token] * 2, [token, stock.pad_token_id])}
    if len(alike) > 1:
        return "it does not join repeats and drop blanks"
    return None


def _guessed(stock: Any) -> config.Text:
    """How text is written for a tokenizer that does not say so: by the characters that it has."""
    letters = [name for name in stock.get_vocab() if len(name) == 1]
    upper = any(letter != letter.lower() for letter in letters)
    lower = any(letter != letter.upper() for letter in letters)
    case: config.Case = "keep" if upper and lower else "upper" if upper else "lower"
    return config.Text(case=case, punctuation="keep" if set(letters) & set(".,?!") else "remove")


def fingerprint(tokenizer: Tokenizer) -> str:
    """A digest of the tokens in their order, the blank, and how text is normalised."""
    content = [tokenizer.tokens, tokenizer.blank, tokenizer.text.model_dump()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
