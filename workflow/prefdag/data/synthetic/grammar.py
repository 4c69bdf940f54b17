"""Write the reviews of the embedded text world: sentence forms, and the random choices that fill them."""

import math
import random
import re
from collections.abc import Callable, Sequence

from prefdag.data.synthetic import lexicon
from prefdag.data.synthetic.lexicon import Opinion

# Chosen so that VADER's score of reviews spreads over the whole of [-1, 1] with a mean near 0 (a test measures it).
LEANING = 0.75  # how far the latent sentiment decides the sign of a sentence
PLAIN = 0.2  # share of sentences without an opinion
NEGATED = 0.18  # share of opinions that are a negated opposite

# `Writer` fills each [slot] in the order of the text; `a` becomes `an` afterwards.
# Only the slots of opinion carry sentiment: VADER scores all other words as neutral.
OPENINGS = (
    "This [film_trait] [genre] [film] follows a [new_lead] who must [do] the [thing] in the [place].",
    "I watched the [film_trait] [genre] [film] about a [new_lead] and a [new_other] [time].",
    "A [new_lead] and a [new_other] [do] the [thing] in this [film_trait] [genre] [film].",
    "In a [new_place], a [new_lead] [meets] a [new_other] and tries to [do] the [thing].",
    "The [film_trait] [genre] [film] opens in a [new_place], where a [new_lead] [does] the [thing].",
    "Set in a [new_place], this [genre] [film] is about a [new_lead] and a [new_thing].",
    "My [companion] and I saw this [film_trait] [genre] [film] [time].",
    "Few [genre] films spend so long in a [new_place] with a [new_lead].",
    "When a [new_lead] [meets] a [new_other], both of them must [do] the [thing].",
    "For two hours, we watch a [new_lead] [do] the [thing] near the [place].",
    "My [companion] told me about this [film_trait] [genre] [film] with a [new_lead] and a [new_thing].",
    "The director of this [film_trait] [genre] [film] sends a [new_lead] to a [new_place].",
    "The [act] of this [film_trait] [genre] [film] shows how a [new_lead] [meets] a [new_other].",
    "[opener], the [act] of this [genre] [film] [judged], but it has a [new_lead] who [does] the [thing].",
    "A [new_thing] brings a [new_lead] to the [place] in this [film_trait] [genre] [film].",
    "After [number] years, a [new_lead] leaves the [place] and [meets] a [new_other].",
)
SCENES = (
    "In one scene, the [lead] [does] the [thing] while the [other] waits in the [place].",
    "The [lead] [meets] the [other], and together they [do] the [thing].",
    "There is a [opinion] scene where the [lead] [does] the [thing].",
    "Then the [other] arrives at the [place], and the [thing] is gone.",
    "The [other] wants to [do] the [thing], but the [lead] [meets] the [other] first.",
    "Halfway through, the [lead] and the [other] [do] the [thing] in the [place].",
    "We see the [lead] [do] the [thing], and the scene [judged].",
    "The [act] takes place in a [new_place], where the [part] [judged].",
)
OPINIONS = (
    "The [part] [judged].",
    "The [part] [concession], but the [part] [judged].",
    "The [part] [concession], but I [reacted] the [part].",
    "[opener], the [part] [judged] and the [part] [judged].",
    "I [reacted] the [part] and the [part].",
    "I [reacted] the [part] because the [lead] [judged].",
    "It has a [opinion] [countable] and [opinion] [plural].",
    "The [part] [was] [comparative] than in other [genre] films.",
    "As the [lead], the actor [judged], and the [part] [judged].",
    "The [lead] [concession], but the [other] [judged].",
    "Each scene with the [lead] and the [thing] [judged].",
    "With [opinion] [mass] and [opinion] [plural], the [place] looked [opinion].",
)
CLOSINGS = (
    "Overall, it was a [opinion] [film].",
    "I would [recommend] this [film] to my [companion].",
    "I left the theater [feeling].",
    "The last scene in the [place] made me feel [feeling].",
    "In the end, the [lead] [does] the [thing], and I felt [feeling].",
    "My [companion] [conceded] it, but I [reacted] it.",
    "What a [opinion] [film]!",
    "It is a [noun] from start to finish.",
    "The ending [judged], and I felt [feeling].",
    "It was a [noun], and the [part] [judged].",
)
RECOMMENDATIONS = Opinion(
    praise=("recommend", "really recommend", "gladly recommend", "happily show"),
    blame=("not recommend", "never recommend"),
    plain=("describe", "mention", "show"),
)
_OPINION = re.compile(r"\[(judged|opinion|reacted|feeling|noun|comparative|recommend)\]")
# A contrast or a reason makes no sense without an opinion.
_OPINIONATED = re.compile(r"\[conce|because")
_SLOT = re.compile(r"\[(\w+)\]")
# Correct for this lexicon, which has no silent `h` and no `u` or `o` pronounced as a consonant.
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])")


class Draw:
    """Random choices that are equal on every machine: Python guarantees the sequence of `Random.random` alone."""

    def __init__(self, seed: int):
        self.uniform = random.Random(seed).random

    def integer(self, low: int, high: int) -> int:
        """Return a uniform integer from low to high, both included."""
        return low + int(self.uniform() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def item(self, items: Sequence[str]) -> str:
        """Choose an item uniformly."""
        return items[int(self.uniform() * len(items))]

    def word(self, words: Sequence[str]) -> str:
        """Choose a word, early ones more often (density ~ rank ** (-2 / 3)), as in natural text."""
        uniform = self.uniform()
        return words[int(uniform * uniform * uniform * len(words))]  # `**` may differ in its last bit between machines


class Writer:
    """Writes the sentences of one review, with fixed roles, place and thing; no other word of a list is used twice."""

    def __init__(self, draw: Draw):
        self._draw = draw
        even = 2 * draw.uniform() - 1
        # Sentiment of the review, in [-1, 1): most reviews lean clearly to one side, some are mixed.
        self._latent = math.copysign(math.sqrt(abs(even)), even)
        self._sign = 0  # of the sentence being written: -1, 0 or 1
        self._plural = False  # number of the subject written last
        self._used: set[str] = set()
        rank = draw.uniform()
        genre = lexicon.GENRES[int(rank * rank * len(lexicon.GENRES))]
        lead, other = self._new(genre.roles), self._new(genre.roles)
        place, thing = self._new(genre.places), self._new(genre.things)
        film = draw.word(lexicon.FILMS)
        self._slots: dict[str, Callable[[], str]] = {
            "genre": lambda: genre.name,
            "film": lambda: film,
            "film_trait": lambda: self._new(lexicon.FILM_TRAITS),
            "lead": lambda: self._subject(lead),
            "other": lambda: self._subject(other),
            "place": lambda: place,
            "thing": lambda: self._subject(thing),
            "new_lead": lambda: self._described(lexicon.ROLE_TRAITS, lead),
            "new_other": lambda: self._described(lexicon.ROLE_TRAITS, other),
            "new_place": lambda: self._described(lexicon.PLACE_TRAITS, place),
            "new_thing": lambda: self._described(lexicon.THING_TRAITS, thing),
            "do": lambda: self._new(genre.verbs),
            "does": lambda: third_person(self._new(genre.verbs)),
            "meets": lambda: third_person(self._new(lexicon.MEETINGS)),
            "companion": lambda: self._new(lexicon.COMPANIONS),
            "time": lambda: draw.word(lexicon.TIMES),
            "opener": lambda: self._new(lexicon.OPENERS),
            "act": lambda: self._new(lexicon.ACTS),
            "number": lambda: draw.word(lexicon.NUMBERS),
            "part": self._part,
            "countable": lambda: self._new(lexicon.PARTS),
            "mass": lambda: self._new(lexicon.MASSES),
            "plural": lambda: self._new(lexicon.PLURALS),
            "was": self._was,
            "opinion": self._attribute,
            "judged": lambda: self._predicate(self._sign),
            "concession": lambda: self._predicate(-self._sign),
            "reacted": lambda: self._reaction(self._sign),
            "conceded": lambda: self._reaction(-self._sign),
            "feeling": lambda: self._boosted(lexicon.FEELINGS, lexicon.BOOSTERS),
            "noun": lambda: self._opinion(lexicon.VERDICTS, self._sign),
            "comparative": lambda: self._opinion(lexicon.COMPARATIVES, self._sign),
            "recommend": lambda: self._opinion(RECOMMENDATIONS, self._sign),
        }

    def sentence(self, forms: Sequence[str]) -> str:
        """Write a sentence in a new form. Its opinions agree, except for what is conceded before a `but`."""
        form = self._new(forms, self._draw.item)
        self._plural = False
        self._sign = 1 if self._draw.chance(min(0.97, max(0.03, 0.5 + LEANING * self._latent))) else -1
        if not _OPINIONATED.search(form) and self._draw.chance(PLAIN):
            self._sign = 0
        text = _ARTICLE.sub(r"\1n ", _SLOT.sub(lambda slot: self._slots[slot[1]](), form))
        if self._sign and _OPINION.search(form) and self._draw.chance(0.3 * abs(self._latent)):
            text = text[:-1] + "!"
        return text[0].upper() + text[1:]

    def _new(self, words: Sequence[str], pick: Callable[[Sequence[str]], str] | None = None) -> str:
        """Choose a word (or form) new to this review; every list is longer than a review can use."""
        pick = pick or self._draw.word
        word = pick(words)
        if word in self._used:
            word = pick([word for word in words if word not in self._used])
        self._used.add(word)
        return word

    def _described(self, traits: Sequence[str], noun: str) -> str:
        return f"{self._new(traits)} {noun}" if self._draw.chance(0.4) else noun

    def _subject(self, singular: str) -> str:
        self._plural = False
        return singular

    def _part(self) -> str:
        kind = (lexicon.PARTS, lexicon.PARTS, lexicon.MASSES, lexicon.PLURALS)[self._draw.integer(0, 3)]
        self._plural = kind is lexicon.PLURALS
        return self._new(kind)

    def _was(self) -> str:
        return "were" if self._plural else "was"

    def _opinion(self, words: Opinion, sign: int) -> str:
        return self._new({1: words.praise, -1: words.blame, 0: words.plain}[sign])

    def _boosted(self, words: Opinion, boosters: Sequence[str]) -> str:
        word = self._opinion(words, self._sign)
        return f"{self._draw.word(boosters)} {word}" if self._sign and self._draw.chance(0.2) else word

    def _is_strong(self) -> bool:
        """Decide whether the opinion is a strong word; a strong latent sentiment makes it likely."""
        return self._draw.chance(0.1 + 0.7 * abs(self._latent))

    def _attribute(self) -> str:
        """Return an adjective before a noun."""
        if self._is_strong():
            return self._boosted(lexicon.STRONG, lexicon.ABSOLUTES)
        return self._boosted(lexicon.MILD, lexicon.BOOSTERS)

    def _predicate(self, sign: int) -> str:
        """Return a verb and its adjective; praise may be negated blame (`was not dull`) and the reverse."""
        verb = self._draw.word((self._was(), "felt", "seemed", "proved"))
        chance = self._draw.uniform()
        if sign and chance < NEGATED:
            word = self._opinion(lexicon.MILD, -sign)
            if verb != self._was():
                return f"never {verb} {word}"
            return verb + self._draw.item((" not ", "n't ", " never ")) + word
        if not sign and chance < 0.5:
            word = self._opinion(lexicon.MILD, self._draw.integer(0, 1) * 2 - 1)
            return f"{verb} {self._draw.word(lexicon.DAMPENERS)} {word}"
        strong = self._is_strong()
        word = self._opinion(lexicon.STRONG if strong else lexicon.MILD, sign)
        if sign and chance > 0.8:
            boosters = lexicon.ABSOLUTES if strong else lexicon.BOOSTERS + lexicon.PREDICATE_BOOSTERS
            word = f"{self._draw.word(boosters)} {word}"
        return f"{verb} {word}"

    def _reaction(self, sign: int) -> str:
        """Return what somebody felt about a thing, in the past tense: `hated`, `did not enjoy`."""
        if sign and self._draw.chance(NEGATED):
            verb = self._opinion(lexicon.REACTIONS, -sign)
            return self._draw.item((f"did not {verb}", f"didn't {verb}", f"never {past(verb)}"))
        verb = past(self._opinion(lexicon.REACTIONS, sign))
        return f"really {verb}" if sign and self._draw.chance(0.15) else verb


def third_person(phrase: str) -> str:
    """Return the third person of a verb: `carry` -> `carries`, `talk to` -> `talks to`."""
    verb, *rest = phrase.split(" ")
    if verb.endswith("y") and verb[-2] not in "aeiou":
        verb = verb[:-1] + "ies"
    else:
        verb += "es" if verb.endswith(("s", "x", "ch", "sh")) else "s"
    return " ".join([verb, *rest])


def past(verb: str) -> str:
    """Return the past tense of a regular verb that doubles no letter: `love` -> `loved`."""
    return verb + ("d" if verb.endswith("e") else "ed")


def write(draw: Draw) -> str:
    """Write a review of 2 or 3 sentences: what the film is about, an opinion or a scene, and usually a verdict."""
    writer = Writer(draw)
    sentences = [writer.sentence(OPENINGS)]
    if draw.chance(0.7):
        sentences.append(writer.sentence(OPINIONS if draw.chance(0.7) else SCENES))
    sentences.append(writer.sentence(CLOSINGS if draw.chance(0.6) else OPINIONS))
    return " ".join(sentences)
