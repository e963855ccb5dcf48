"""The guide's questions and answers, and the stream of training lines made from them.

Owns the files of this folder and every random choice about training questions; knows nothing of tensors.
Invariant: no training question equals a held-out question after `normalise`.
"""

from __future__ import annotations

import re
import string
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from guide.patterns import Pattern, parse, words

HERE = Path(__file__).parent
REFUSAL = "refuse"
REFUSAL_ANSWER = (
    "I only know llmws. Ask me how to install it, resume a session, add a model, or anything else about llmws; "
    "for other questions load a bigger model."
)

VERB_CARRIERS = """
how do i {vp}
how do i {vp}
how can i {vp}
how to {vp}
how would i {vp}
how should i {vp}
what do i {type|do|need|enter} to {vp}
what is the {command|way|best way|easiest way|right way} to {vp}
which command do i {use|need} to {vp}
is there {a way|a command|an option|some way} to {vp}
is it possible to {vp}
can i {vp}
can you {vp}
i want to {vp}
i need to {vp}
i would like to {vp}
i am trying to {vp}
i wish to {vp}
help me {|to} {vp}
{show|tell|explain to|teach} me how to {vp}
{explain|describe} how {to|i can} {vp}
{the|what are the} steps to {vp}
{vp}
{vp}
where {do|can} i {vp}
let me {vp}
what if i want to {vp}
i do not know how to {vp}
am i able to {vp}
{does it|will it} let me {vp}
"""
NOUN_CARRIERS = """
what is {np}
what is {np}
what is {np} {for|about|good for}
what does {np} {do|mean|tell me}
what about {np}
tell me {about|more about|something about} {np}
explain {np}
explain {np} {to me|please|in short}
describe {np}
{np}
{np}
{info|information|details|help} {on|about|for} {np}
i want to {know|learn|read} {about|more about} {np}
how does {np} work
how do i use {np}
what {can you tell me|do you know} about {np}
{meaning|purpose|use|explanation} of {np}
i do not understand {np}
i have a question about {np}
what should i know about {np}
"""
_CARRIER_SLOT = re.compile(r"\{([a-z]+)\}")
_QUOTES = str.maketrans("", "", "'\u2019\u2018")
_BREAKS = str.maketrans(dict.fromkeys('?!,;:"`()[]*\u201c\u201d\u2026\u2014\u2013\n\t', " "))


def normalise(text: str) -> str:
    """Return `text` as the model sees it: lower case, without most punctuation, single spaces.

    The chat template does the same in Jinja; a test compares the two.
    """
    plain = text.lower().translate(_QUOTES).translate(_BREAKS).replace("<|", " ")
    return " ".join(word.strip(".") for word in plain.split()).strip()


@dataclass(frozen=True)
class Topic:
    """One thing the guide can answer: its id, its answer, and the patterns of its questions.

    Verb and noun phrases are put into frames ("how do I …", "what is …"); questions and free wordings stand alone.
    """

    id: str
    answer: str
    verb_phrases: tuple[Pattern, ...]
    noun_phrases: tuple[Pattern, ...]
    questions: tuple[Pattern, ...]
    free: tuple[Pattern, ...]


@dataclass(frozen=True)
class Sample:
    """One training line: a normalised question and the topic (or REFUSAL) whose answer it gets."""

    question: str
    topic: str


def load_topics(folder: Path = HERE / "topics") -> dict[str, Topic]:
    """Return all topics by id, in file order."""
    topics: dict[str, Topic] = {}
    free = tomllib.loads((folder.parent / "free.toml").read_text(encoding="utf-8"))
    for path in sorted(folder.glob("*.toml")):
        for topic_id, entry in tomllib.loads(path.read_text(encoding="utf-8")).items():
            if topic_id in topics:
                raise ValueError(f"{path.name}: topic {topic_id} is defined twice")
            topics[topic_id] = Topic(
                id=topic_id,
                answer=entry["answer"],
                verb_phrases=tuple(parse(entry.get("vp", ""))),
                noun_phrases=tuple(parse(entry.get("np", ""))),
                questions=tuple(parse(entry.get("q", ""))),
                free=tuple(parse(free.get(topic_id, ""))),
            )
    return topics


def load_heldout(folder: Path = HERE / "heldout") -> dict[str, list[tuple[str, str]]]:
    """Return the held-out sets that exist, by name, as (topic or topics joined by "|", question) pairs."""
    sets: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(folder.glob("*.tsv")):
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            topic, tab, question = line.partition("\t")
            rows.append((topic.strip(), question.strip()) if tab else (REFUSAL, topic.strip()))
        sets[path.stem] = rows
    return sets


class Curriculum:
    """An endless, seeded stream of training lines.

    Args:
        topics: what can be answered.
        seed: of every random choice.
        excluded: normalised questions that must never be yielded (the held-out ones).
        refusal_share: share of lines to be refused.
        free_share: share of a topic's lines in free wording.

    Attributes:
        noise: 0 to 1, how many words are dropped and mistyped; the trainer raises it.
    """

    def __init__(
        self,
        topics: Mapping[str, Topic],
        seed: int,
        excluded: Iterable[str] = (),
        *,
        refusal_share: float = 0.42,
        free_share: float = 0.3,
    ) -> None:
        self.topics = topics
        self.rng = Random(seed)
        self.excluded = frozenset(excluded)
        self.refusal_share = refusal_share
        self.free_share = free_share
        self.noise = 0.0
        negatives = tomllib.loads((HERE / "negatives.toml").read_text(encoding="utf-8"))
        self.lists = {name: words(block) for name, block in negatives["lists"].items()}
        self.negatives = {name: parse(block) for name, block in negatives["lines"].items()}
        tables = tomllib.loads((HERE / "synonyms.toml").read_text(encoding="utf-8"))
        self.synonyms = _synonym_table(tables["groups"])
        self.longest = max(len(phrase.split()) for phrase in self.synonyms)
        self.prefixes = words(tables["prefixes"])
        self.suffixes = words(tables["suffixes"])
        self.anchors = frozenset(words(tables["anchors"]))
        self.carriers = {"vp": parse(VERB_CARRIERS), "np": parse(NOUN_CARRIERS)}
        self.ids = list(topics)

    def __iter__(self) -> Iterator[Sample]:
        while True:
            yield self.sample()

    def sample(self) -> Sample:
        """Return the next line."""
        while True:
            refuse = self.rng.random() < self.refusal_share
            topic = REFUSAL if refuse else self.rng.choice(self.ids)
            line = self._foreign() if refuse else self._question(self.topics[topic])
            line = normalise(self._disturb(line, foreign=refuse))
            if line and line not in self.excluded:
                return Sample(line, topic)

    def reachable(self, questions: Iterable[str]) -> frozenset[str]:
        """Return those of `questions` which the patterns can produce, synonyms and mistakes aside."""
        parts = []
        for topic in self.topics.values():
            parts += [pattern.regex(self.lists) for pattern in (*topic.questions, *topic.free)]
            for kind, phrases in (("vp", topic.verb_phrases), ("np", topic.noun_phrases)):
                if not phrases:
                    continue
                inner = "(?:" + "|".join(phrase.regex(self.lists) for phrase in phrases) + ")"
                for carrier in self.carriers[kind]:
                    framed = Pattern(carrier.text.replace("{" + kind + "}", "\0")).regex(self.lists)
                    parts.append(framed.replace(re.escape("\0"), inner))
        parts += [pattern.regex(self.lists) for group in self.negatives.values() for pattern in group]
        before = "(?:(?:" + "|".join(map(re.escape, self.prefixes)) + ") )?"
        after = "(?: (?:" + "|".join(map(re.escape, self.suffixes)) + "))?"
        plain = (part.translate(_QUOTES).replace(",", "") for part in dict.fromkeys(parts))
        patterns = [re.compile(before + part + after) for part in plain]
        return frozenset(
            question for question in questions if any(pattern.fullmatch(normalise(question)) for pattern in patterns)
        )

    def _question(self, topic: Topic) -> str:
        """Return one undisturbed question of a topic."""
        if topic.free and self.rng.random() < self.free_share:
            return self.rng.choice(topic.free).sample(self.rng, self.lists)
        kinds = [("q", topic.questions), ("vp", topic.verb_phrases), ("np", topic.noun_phrases)]
        weights = [len(patterns) * (1.0 if kind == "q" else 1.6) + (2 if patterns else 0) for kind, patterns in kinds]
        kind, patterns = self.rng.choices(kinds, weights)[0]
        line = self.rng.choice(patterns).sample(self.rng, self.lists)
        if kind == "q":
            return line
        carrier = self.rng.choice(self.carriers[kind]).text
        carrier = Pattern(carrier.replace("{" + kind + "}", "\0")).sample(self.rng, self.lists)
        return carrier.replace("\0", line)

    def _foreign(self) -> str:
        """Return one question that is none of the guide's business."""
        kind = self.rng.random()
        if kind < 0.30:
            return self._swap_anchors()
        if kind < 0.37:
            return self._invented()
        if kind < 0.40:
            return " ".join(self._listed() for _ in range(self.rng.randint(2, 8)))
        return self._listed()

    def _listed(self) -> str:
        """Return a line of `negatives.toml`."""
        group = self.rng.choices(list(_GROUP_WEIGHTS), list(_GROUP_WEIGHTS.values()))[0]
        return self.rng.choice(self.negatives[group]).sample(self.rng, self.lists)

    def _noun(self) -> str:
        kind = self.rng.choice(["device", "app", "thing", "thing", "food", "animal", "place"])
        return self.rng.choice(self.lists[kind])

    def _swap_anchors(self) -> str:
        """Return a question of a topic in which every content word of llmws became a foreign noun."""
        while True:
            topic = self.topics[self.rng.choice(self.ids)]
            tokens = self._question(topic).split()
            found = [i for i, token in enumerate(tokens) if token in self.anchors]
            if not found:
                continue
            for i in found:
                tokens[i] = self._noun()
            return " ".join(tokens)

    def _invented(self) -> str:
        """Return a question about an invented word, so that unknown words as such lead to a refusal."""
        word = "".join(
            self.rng.choice(_ONSETS) + self.rng.choice(_VOWELS) + self.rng.choice(_CODAS)
            for _ in range(self.rng.choice([2, 2, 3]))
        )
        frame = Pattern(self.rng.choice(_FRAMES).replace("{}", "\0")).sample(self.rng, self.lists)
        return frame.replace("\0", word)

    def _disturb(self, line: str, *, foreign: bool) -> str:
        """Return the line with synonyms, additions, dropped words and typing mistakes, as `noise` (0-1) allows."""
        rng = self.rng
        if rng.random() < 0.7:
            line = self._replace_synonyms(line, 0.3, spare_anchors=foreign)
        if rng.random() < 0.16:
            line = f"{rng.choice(self.prefixes)} {line}"
        if rng.random() < 0.12:
            suffix = rng.choice(self.suffixes)
            if not foreign or not ("llmws" in suffix or "version" in suffix):
                line = f"{line} {suffix}"
        tokens = line.split()
        if len(tokens) > 4 and rng.random() < 0.12 * self.noise:
            small = [i for i, token in enumerate(tokens) if token in _SMALL_WORDS]
            for i in sorted(rng.sample(small, min(len(small), rng.choice([1, 2, 3]))), reverse=True):
                del tokens[i]
        if rng.random() < 0.15 * self.noise:
            long = [i for i, token in enumerate(tokens) if len(token) >= 5 and token.isalpha()]
            if long:
                i = rng.choice(long)
                tokens[i] = _typo(tokens[i], rng)
        return " ".join(tokens)

    def _replace_synonyms(self, line: str, chance: float, *, spare_anchors: bool) -> str:
        tokens, out, i = line.split(), [], 0
        while i < len(tokens):
            for size in range(min(self.longest, len(tokens) - i), 0, -1):
                phrase = " ".join(tokens[i : i + size])
                options = self.synonyms.get(phrase)
                spared = spare_anchors and not self.anchors.isdisjoint(tokens[i : i + size])
                if options and not spared and self.rng.random() < chance:
                    out.append(self.rng.choice(options))
                    i += size
                    break
            else:
                out.append(tokens[i])
                i += 1
        return " ".join(out)


_SMALL_WORDS = frozenset(
    word for line in ("the a an my do does i is to of it me", "can you please in on this that are for with be will")
    for word in line.split(" ")
)  # fmt: skip
_GROUP_WEIGHTS = {"verbs": 0.26, "general": 0.17, "daily": 0.17, "code": 0.08, "homographs": 0.30, "pasted": 0.02}
_ONSETS = [*"bcdfghjklmnprstvwz", "br", "gl", "pr", "st", ""]
_VOWELS = [*"aeiouy", "ai", "ee", "ou"]
_CODAS = ["", "", *"nrlstmx", "ck"]
_FRAMES = [
    line.strip()
    for line in """
    what is {}
    what is a {}
    who is {}
    how do i {} my {}
    where is {}
    {}
    tell me about {}
    how do i use {}
    is {} good
    how do i <verb> my {}
    how do i <verb> the {}
    <verb> {}
    my {} is broken
    explain {}
    why is the {} so {}
    how much is a {}
    i lost my {}
    does {} work
    what does {} mean
    {} {}
    """.strip().splitlines()
]


def _synonym_table(block: str) -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    for line in block.splitlines():
        members = words(line)
        for member in members:
            table.setdefault(member, []).extend(other for other in members if other != member)
    return table


def _typo(word: str, rng: Random) -> str:
    """Return `word` with one letter left out, doubled, replaced, or swapped with the next."""
    i = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        return word[:i] + word[i + 1 :]
    if kind == 1:
        return word[:i] + word[i] + word[i:]
    if kind == 2:
        return word[:i] + rng.choice(string.ascii_lowercase) + word[i + 1 :]
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
