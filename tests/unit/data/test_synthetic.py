"""The embedded text world and its ground-truth reward."""

import hashlib
import itertools
import re
from collections import Counter

import numpy as np
import pytest

from prefdag.data.synthetic import grammar, lexicon
from prefdag.data.synthetic.grammar import past, third_person
from prefdag.data.synthetic.lexicon import Opinion
from prefdag.data.synthetic.reviews import MAX_PROMPT_WORDS, MAX_WORDS, MIN_PROMPT_WORDS, MIN_WORDS, prompts, reviews
from prefdag.errors import UserError
from prefdag.rewards.ground_truth import vader

ADJECTIVES = (lexicon.MILD, lexicon.STRONG, lexicon.FEELINGS)
OPINIONS = (*ADJECTIVES, lexicon.VERDICTS, lexicon.COMPARATIVES, lexicon.REACTIONS)
TRAITS = (lexicon.FILM_TRAITS, lexicon.ROLE_TRAITS, lexicon.PLACE_TRAITS, lexicon.THING_TRAITS)
NOUN_LISTS = (lexicon.PARTS, lexicon.MASSES, lexicon.PLURALS, lexicon.COMPANIONS, lexicon.FILMS)
FORMS = (*grammar.OPENINGS, *grammar.SCENES, *grammar.OPINIONS, *grammar.CLOSINGS)


@pytest.fixture(scope="module")
def valence() -> dict[str, float]:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer().lexicon


@pytest.fixture(scope="module")
def sample() -> list[str]:
    return [review.text for review in reviews(0, 2000)]


@pytest.fixture(scope="module")
def scores(sample: list[str]) -> np.ndarray:
    return vader(sample)


def plain_words() -> set[str]:
    """Every word of the lexicon that is to say nothing of a film's worth."""
    lists = [words for genre in lexicon.GENRES for words in (genre.roles, genre.places, genre.things, genre.verbs)]
    lists += [*TRAITS, *NOUN_LISTS, lexicon.MEETINGS, lexicon.TIMES, lexicon.OPENERS, lexicon.ACTS]
    lists += [opinion.plain for opinion in OPINIONS]
    phrases = set(itertools.chain(*lists)) | {genre.name for genre in lexicon.GENRES}
    return {word for phrase in phrases for word in re.findall(r"[a-z-]+", phrase.lower())}


def test_the_world_is_the_same_everywhere():
    """sha256 of the first 100 reviews with their prompts, as first written; a change of the world must be meant."""
    lines = (f"{review.prompt}|{review.continuation}\n" for review in reviews(0, 100))
    assert (
        hashlib.sha256("".join(lines).encode()).hexdigest()
        == "1bda606a58ce5eb9740b8c1d147db96ce2dfc18eb6ece16abc8b77d5ca34927b"
    )


def test_a_review_depends_on_its_seed_and_number_only():
    few, many, other = list(reviews(3, 5)), list(reviews(3, 50)), list(reviews(4, 50))
    assert few == many[:5]
    assert len({review.text for review in many + other}) == 100
    assert list(reviews(3, 0)) == []


def test_prompt_and_continuation_make_the_text():
    for review in reviews(0, 500):
        assert review.prompt + review.continuation == review.text
        assert review.continuation.startswith(" ") and not review.prompt.endswith(" ")
        assert MIN_PROMPT_WORDS <= len(review.prompt.split()) <= MAX_PROMPT_WORDS
        assert MIN_WORDS <= len(review.text.split()) <= MAX_WORDS


def test_prompts_are_distinct_new_and_many():
    few = prompts(1, 500, set())
    assert few == prompts(1, 800, set())[:500]
    more = prompts(1, 4000, set(few))
    assert len(set(more)) == 4000
    assert not set(more) & set(few)


def test_too_many_prompts_are_refused():
    class Everything(frozenset):
        def __contains__(self, prompt: object) -> bool:
            return True

    with pytest.raises(UserError, match="has 0 new prompts, not the 7 that the suite needs"):
        prompts(0, 7, Everything())


def test_prompts_leave_the_sentiment_to_the_continuation():
    assert np.abs(vader(prompts(2, 1000, set()))).mean() < 0.05


def test_the_vocabulary_is_rich():
    nouns = {noun for genre in lexicon.GENRES for noun in (*genre.roles, *genre.places, *genre.things)}
    nouns |= set(itertools.chain(*NOUN_LISTS, lexicon.VERDICTS.praise, lexicon.VERDICTS.blame))
    praise, blame = (
        {*itertools.chain(*lists)} for lists in zip(*((words.praise, words.blame) for words in ADJECTIVES))
    )
    neutral = {*itertools.chain(*TRAITS, lexicon.MILD.plain)}
    verbs = {verb.split()[0] for genre in lexicon.GENRES for verb in genre.verbs}
    verbs |= {verb.split()[0] for verb in lexicon.MEETINGS}
    verbs |= {*lexicon.REACTIONS.praise, *lexicon.REACTIONS.blame, *lexicon.REACTIONS.plain}
    assert len(nouns) >= 250 and len(verbs) >= 110
    assert len(praise) >= 80 and len(blame) >= 80 and len(neutral) >= 80
    assert not praise & blame and not (praise | blame) & neutral
    assert len(lexicon.GENRES) >= 12 and len(FORMS) >= 40
    for words in itertools.chain(NOUN_LISTS, TRAITS, *((words.praise, words.blame, words.plain) for words in OPINIONS)):
        assert len(set(words)) == len(words)


def test_opinion_words_have_their_sign_in_vader(valence: dict[str, float]):
    for words in OPINIONS:
        inflect = past if words is lexicon.REACTIONS else str
        praise = [valence.get(inflect(word), 0) for word in words.praise]
        blame = [valence.get(inflect(word), 0) for word in words.blame]
        assert np.mean([value > 0 for value in praise] + [value < 0 for value in blame]) >= 0.85
        assert min(praise) >= 0 >= max(blame)


def test_plain_words_and_forms_have_no_valence(valence: dict[str, float]):
    assert {word for word in plain_words() if word in valence} == set()
    assert {third_person(verb) for verb in plain_words() if third_person(verb) in valence} <= {"cares"}
    skeleton = re.sub(r"\[\w+\]", " ", " ".join(FORMS)).lower()
    assert {word for word in re.findall(r"[a-z]+", skeleton) if word in valence} == set()


def test_inflection():
    verbs = ("carry", "buy", "watch", "smash", "talk to", "seize", "halt")
    assert [*map(third_person, verbs)] == ["carries", "buys", "watches", "smashes", "talks to", "seizes", "halts"]
    assert [past("love"), past("enjoy")] == ["loved", "enjoyed"]


def test_grammar(sample: list[str]):
    vowels = re.compile(r"\b[Aa] [aeiouAEIOU]|\b[Aa]n [^aeiouAEIOU]")
    # `an hour` and `a unit` go by sound: the lexicon has no such word, or the rule above would be wrong.
    by_sound = re.compile(r"\b([Aa]n? )?(hour|honest|heir|uni|use|one|once|eu)")
    broken = re.compile(r"[\[\]]|  | [.,!]|[.,!]{2}|\b(\w+) \1\b")
    plural = "|".join(lexicon.PLURALS)
    agreement = re.compile(rf"\bthe ({plural}) (was|wasn't)\b|\b(plot|acting|ending|actor|script) (were|weren't)\b")
    for text in sample:
        assert text.isascii()
        assert not vowels.search(text) and not broken.search(text) and not agreement.search(text), text
        split = re.split(r"(?<=[.!]) ", text)
        assert 2 <= len(split) <= 4
        assert all(re.fullmatch(r"[A-Z][^.!]*[.!]", sentence) for sentence in split), text
    assert not any(by_sound.match(word) for word in plain_words() - {"once"})


def test_reviews_spread_over_all_sentiments(scores: np.ndarray):
    assert abs(scores.mean()) < 0.1
    assert 0.5 < scores.std() < 0.66
    assert scores.min() < -0.9 and scores.max() > 0.9
    assert (np.histogram(scores, bins=10, range=(-1, 1))[0] > 0.005 * len(scores)).all()


def test_negation_and_contrast_occur_and_count(sample: list[str], scores: np.ndarray):
    counts = Counter(word for text in sample for word in re.findall(r"\bbut\b|\bnot\b|n't\b|\bnever\b", text))
    assert min(counts[word] for word in ("but", "not", "n't", "never")) > 50
    pairs = [
        ("The plot was boring.", "The plot was not boring."),
        ("The plot felt dull.", "The plot never felt dull."),
        ("The actor was funny.", "The actor wasn't funny."),
        ("I enjoyed it.", "I didn't enjoy it."),
        (
            "The acting was wonderful, but the plot felt terrible.",
            "The plot felt terrible, but the acting was wonderful.",
        ),
    ]
    signs = [np.sign(vader(pair)) for pair in pairs]
    assert all(first == -second != 0 for first, second in signs)


def test_content_follows_the_genre(sample: list[str]):
    """A review that names its genre shows it nearly always, and nothing that only another genre has."""
    nouns = {genre.name: {*genre.roles, *genre.places, *genre.things} for genre in lexicon.GENRES}
    num_genres = Counter(itertools.chain(*nouns.values()))
    # `photograph` and `tune` are verbs too, and `story` is a part of any film.
    other_words = {*itertools.chain(*NOUN_LISTS, lexicon.MEETINGS, *(genre.verbs for genre in lexicon.GENRES))}
    named = re.compile(rf"\b({'|'.join(nouns)}) (?:film|movie|picture)")
    texts = [(match[1], re.sub(named, "", text)) for text in sample if (match := named.search(text))]
    shown = 0
    for name, text in texts:
        words = set(re.findall(r"[a-z-]+", text))
        shown += bool(words & nouns[name])
        genre_words = {word for noun in nouns[name] for word in noun.split()}  # a `train station` is no space station
        foreign = {noun for noun in words - genre_words - other_words if num_genres[noun] == 1}
        assert not foreign, (foreign, text)
    assert len(texts) > 0.7 * len(sample)
    assert shown > 0.9 * len(texts)


def test_strong_words_say_more_than_mild_ones():
    def mean_size(words: Opinion) -> float:
        return float(np.abs(vader([*words.praise, *words.blame])).mean())

    assert mean_size(lexicon.STRONG) > mean_size(lexicon.MILD) + 0.1


def test_sentiment_is_vaders_compound():
    """One word of valence v scores v / sqrt(v^2 + 15): `good` 1.9 gives 0.4404 (VADER rounds to 4 digits)."""
    values = vader(text for text in ("good", "", "a table"))
    assert values.dtype == np.float64 and values.shape == (3,)
    assert values.tolist() == [0.4404, 0.0, 0.0]
    assert vader([]).shape == (0,)
