"""Words to name latents with, and their embeddings in the model's text-image space."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import ConfigError, DataError, require
from vision_sae.model.adapter import TextImageAdapter

PLAIN = ("{}",)  # words as they stand, as in DN-CBM and SpLiCE


@dataclass(frozen=True)
class Vocabulary:
    """Words or phrases, each once, where they come from, and what was left out on the way."""

    words: list[str]
    source: str
    repeated: tuple[str, ...] = ()  # words that came again, each named once
    duplicates: int = 0  # lines that were left out because of them
    empty: int = 0  # lines without a word

    def left_out(self) -> str:
        """What was left out, in words; empty when nothing was."""
        said = []
        if self.duplicates:
            few = ", ".join(self.repeated[:5]) + (", ..." if len(self.repeated) > 5 else "")
            said.append(f"{_count(self.duplicates, 'repeated word')} ({few})")
        if self.empty:
            said.append(_count(self.empty, "empty line"))
        return f"{self.source}: left out {' and '.join(said)}" if said else ""


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def vocabulary_of(words: Iterable[str], source: str) -> Vocabulary:
    """Words without blanks and repeats, which are counted. Raises DataError for fewer than two."""
    given = [word.strip() for word in words]
    counts = Counter(word for word in given if word)
    kept = list(counts)  # in the order in which they came
    repeated = tuple(word for word in kept if counts[word] > 1)
    found = Vocabulary(
        kept, source, repeated, counts.total() - len(kept), len(given) - counts.total()
    )
    if len(kept) < 2:
        raise DataError(
            f"{source} holds {len(kept)} words; naming needs at least 2"
            + (f" ({found.left_out()})" if found.left_out() else "")
        )
    return found


def read_vocabulary(path: Path | str) -> Vocabulary:
    """A text file with a word or phrase per line. Raises DataError."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no vocabulary file {path}: a text file with a word or phrase per line")
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8: {error}") from error
    return vocabulary_of(lines, str(path))


def frequent_words(n: int = 20_000, *, letters: int = 3) -> Vocabulary:
    """The n most frequent English words of at least so many letters (wordfreq's shipped lists).

    Numbers and what has other signs than letters are passed over. Raises MissingExtra.
    """
    wordfreq = require("wordfreq", "naming")
    words: list[str] = []
    for word in wordfreq.iter_wordlist("en"):
        if len(word) >= letters and word.isalpha():
            words.append(word)
        if len(words) == n:
            break
    return vocabulary_of(words, f"the {len(words):,} most frequent English words")


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Raises ConfigError for none, and for one without exactly one {} for the word."""
    for template in templates:
        if template.count("{}") != 1 or template.replace("{}", "").count("{"):
            raise ConfigError(
                f"a template has one {{}} for the word, as in 'a photo of a {{}}'; got {template!r}"
            )
    if not templates:
        raise ConfigError("no template was given; '{}' stands for the word alone")
    return tuple(templates)


def embed_words(
    model: TextImageAdapter,
    words: Sequence[str],
    templates: Sequence[str] = PLAIN,
    *,
    tell: Callable[[int], None] = lambda words: None,
) -> Float[Tensor, "v e"]:
    """Unit embeddings of words: the mean over templates of their unit embeddings, scaled to 1.

    Not centred. `tell` is called with how many more words are done. Raises ConfigError for a
    template without a place for the word, DataError for a model without text embeddings.
    """
    check_templates(templates)
    if not isinstance(model, TextImageAdapter):
        raise DataError(f"{getattr(model, 'name', model)} has no text embeddings")
    parts = []
    for start in range(0, len(words), 256):
        some = words[start : start + 256]
        texts = [template.replace("{}", word) for template in templates for word in some]
        embedded = F.normalize(model.embed_texts(texts).float().cpu(), dim=1)
        parts.append(F.normalize(embedded.view(len(templates), len(some), -1).mean(0), dim=1))
        tell(len(some))
    return torch.cat(parts)
