"""The words of the embedded text world.

A test checks three rules: plain words have no valence in VADER's lexicon, so a genre or a prompt does not predict the
verdict; words of opinion nearly always have the sign of their list there; and `a` or `an` follows from a word's first
letter (so no `hour`, `honest`, `unique`, `one-...`). A fourth rule has no test: every place fits after `in the`.
Lists run from common to rare words: early words are chosen more often, as in natural text.
"""

from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


@dataclass(frozen=True)
class Genre:
    """Words that fit together: every verb (base form) takes every thing as its object."""

    name: str
    roles: tuple[str, ...]
    places: tuple[str, ...]
    things: tuple[str, ...]
    verbs: tuple[str, ...]


@dataclass(frozen=True)
class Opinion:
    """Words of one grammatical kind, by their judgement of a film."""

    praise: tuple[str, ...]
    blame: tuple[str, ...]
    plain: tuple[str, ...]


def _genre(name: str, roles: str, places: str, things: str, verbs: str) -> Genre:
    return Genre(name, _words(roles), _words(places), _words(things), _words(verbs))


GENRES = (
    _genre(
        "heist",
        "driver, locksmith, forger, dealer, gambler, guard, hacker",
        "casino, museum, bank, gallery, tunnel, hotel",
        "painting, necklace, statue, briefcase, crown, coin",
        "copy, sell, carry, find, wrap, return",
    ),
    _genre(
        "space",
        "pilot, astronaut, captain, engineer, botanist, commander, navigator",
        "spaceship, station, colony, crater, cockpit, airlock",
        "engine, shuttle, satellite, antenna, reactor, beacon",
        "repair, launch, test, rebuild, scan, track",
    ),
    _genre(
        "detective",
        "detective, inspector, butler, widow, sergeant, landlord, gardener",
        "mansion, library, alley, harbor, cellar, attic",
        "letter, key, diary, photograph, ring, candle",
        "find, examine, study, trace, burn, recognize",
    ),
    _genre(
        "western",
        "sheriff, cowboy, rancher, bartender, blacksmith, drifter, preacher",
        "saloon, desert, canyon, prairie, barn, valley",
        "horse, wagon, herd, stagecoach, mule, cart",
        "follow, lead, buy, chase, sell, halt",
    ),
    _genre(
        "pirate",
        "captain, sailor, cook, gunner, stowaway, fisherman, surgeon",
        "tavern, lighthouse, harbor, lagoon, cove, jungle",
        "chest, compass, anchor, cannon, barrel, parrot",
        "find, carry, haul, sell, hold, lift",
    ),
    _genre(
        "courtroom",
        "lawyer, judge, witness, juror, clerk, prosecutor, bailiff",
        "courthouse, office, corridor, jury room, archive, hallway",
        "contract, petition, report, transcript, statement, file",
        "read, explain, study, sign, discuss, quote",
    ),
    _genre(
        "racing",
        "driver, mechanic, rookie, engineer, sponsor, coach, timekeeper",
        "garage, workshop, pit lane, stadium, grandstand, tunnel",
        "car, engine, gearbox, motorcycle, clutch, wheel",
        "tune, test, rebuild, paint, replace, adjust",
    ),
    _genre(
        "cooking",
        "chef, baker, waiter, farmer, butcher, dishwasher, grandmother",
        "kitchen, bakery, market, restaurant, vineyard, pantry",
        "soup, pie, stew, sauce, omelet, cake",
        "cook, taste, serve, prepare, sell, reheat",
    ),
    _genre(
        "spy",
        "spy, agent, diplomat, courier, officer, analyst, translator",
        "embassy, airport, consulate, hotel, bunker, train station",
        "code, message, file, telegram, document, dossier",
        "decode, deliver, copy, read, intercept, translate",
    ),
    _genre(
        "mountain",
        "climber, guide, ranger, hermit, geologist, skier, shepherd",
        "cabin, valley, gorge, village, forest, ravine",
        "rope, tent, sled, lantern, backpack, stove",
        "carry, pack, find, mend, unpack, lift",
    ),
    _genre(
        "robot",
        "inventor, scientist, programmer, technician, student, engineer, collector",
        "laboratory, factory, warehouse, basement, scrapyard, workshop",
        "robot, machine, circuit, sensor, battery, processor",
        "build, repair, test, rewire, dismantle, assemble",
    ),
    _genre(
        "jazz",
        "singer, pianist, drummer, trumpeter, composer, bassist, producer",
        "club, studio, bar, cellar, concert hall, ballroom",
        "song, melody, album, tune, ballad, waltz",
        "write, record, rehearse, perform, arrange, learn",
    ),
    _genre(
        "school",
        "teacher, student, principal, coach, janitor, librarian, tutor",
        "classroom, cafeteria, schoolyard, dormitory, gymnasium, library",
        "essay, poem, speech, exam, notebook, project",
        "write, finish, read, grade, rewrite, memorize",
    ),
    _genre(
        "circus",
        "clown, acrobat, juggler, magician, ringmaster, dancer, tamer",
        "tent, arena, caravan, farmyard, village, barn",
        "elephant, lion, pony, tiger, monkey, bear",
        "train, feed, lead, wash, chase, tame",
    ),
    _genre(
        "dragon",
        "knight, wizard, princess, squire, dwarf, queen, apprentice",
        "castle, forest, kingdom, cave, tower, swamp",
        "sword, crystal, potion, scroll, amulet, shield",
        "find, carry, guard, seize, hold, deliver",
    ),
    _genre(
        "newspaper",
        "reporter, editor, photographer, printer, columnist, intern, publisher",
        "newsroom, city hall, office, cafe, archive, press room",
        "story, article, headline, interview, column, obituary",
        "write, print, edit, publish, check, rewrite",
    ),
)

# What one role does to another.
MEETINGS = _words(
    "meet, follow, watch, find, visit, hire, teach, call, train, question, marry, replace, advise, photograph, "
    "interview, paint, film, summon, phone, imitate, escort, feed, describe, travel with, work for, wait for, talk to, "
    "write to, dance with, live with, ride with"
)

FILMS = _words("film, movie, picture")
COMPANIONS = _words(
    "sister, brother, father, mother, cousin, neighbor, roommate, colleague, uncle, grandfather, classmate, aunt, "
    "partner, boss, niece, nephew, wife, husband, daughter, son"
)
TIMES = _words(
    "yesterday, last night, last week, on Monday, on Friday, on Saturday, on Sunday, in the afternoon, at midnight, "
    "after work, in May, at school, in an old theater, on a train, on television, in the evening, twice"
)
OPENERS = _words("for me, frankly, to my eyes, somehow, in my view, as usual, to be blunt, as expected, for once")

# What a film is made of. Masses take no article; plurals take `were`.
PARTS = _words(
    "plot, script, ending, score, cast, story, soundtrack, pace, finale, opening, twist, setting, screenplay, premise, "
    "theme, climax, tone, title sequence, narrator, prologue, mood, style"
)
MASSES = _words(
    "acting, dialogue, music, photography, editing, lighting, camera work, pacing, narration, choreography, "
    "costume design, makeup"
)
PLURALS = _words(
    "characters, costumes, songs, sets, effects, performances, visuals, close-ups, flashbacks, landscapes, colors, "
    "subtitles, props, minor roles, dances, sounds, monologues"
)

FILM_TRAITS = _words(
    "new, old, quiet, short, long, slow, recent, modern, early, small, French, silent, Italian, low-budget, British, "
    "Danish, black-and-white, Korean, animated, two-hour, Spanish, Japanese, independent, colorful, Irish, Polish, "
    "Swedish, Mexican, big-budget, rural, subtitled, wordy, old-fashioned, Brazilian, theatrical, historical, "
    "experimental, obscure, three-hour, minimal"
)
ROLE_TRAITS = _words(
    "young, old, retired, tall, former, local, unknown, famous, foreign, nameless, middle-aged, bearded, "
    "stern, patient, divorced, sleepy, talkative, part-time, left-handed, wandering, aging, barefoot, runaway"
)
PLACE_TRAITS = _words(
    "small, crowded, distant, narrow, remote, nearby, dusty, snowy, foggy, sunlit, half-empty, ancient, northern, "
    "southern, coastal, moonlit, tiny, busy"
)
THING_TRAITS = _words(
    "old, heavy, hidden, golden, antique, strange-looking, second-hand, dented, painted, familiar, "
    "borrowed, tiny, unusual"
)

# Opinions, mild words first in their own tuple: the latent sentiment chooses the tuple, so its size is learnable too.
MILD = Opinion(
    praise=_words(
        "good, funny, clever, nice, enjoyable, fresh, interesting, likable, smart, engaging, entertaining, graceful, "
        "warm, pleasant, lively, gentle, elegant, original, thoughtful, playful, creative, convincing, sweet, witty, "
        "sincere, romantic, energetic, effective, sunny, intelligent, powerful, confident, satisfying"
    ),
    blame=_words(
        "weak, dull, boring, lazy, sloppy, bland, messy, lame, predictable, annoying, clumsy, careless, confusing, "
        "dreary, foolish, gloomy, repetitive, childish, faulty, tiresome, irritating, exhausting, embarrassing, "
        "distracting, unimpressive, empty, humorless, mindless, charmless, ludicrous, frustrating, depressing, flawed"
    ),
    plain=_words(
        "ordinary, simple, familiar, average, conventional, typical, traditional, plain, quiet, "
        "restrained, understated, literal, formal, mild, unusual, theatrical, old-fashioned"
    ),
)
STRONG = Opinion(
    praise=_words(
        "wonderful, great, brilliant, beautiful, superb, excellent, charming, delightful, amazing, fantastic, perfect, "
        "lovely, impressive, magnificent, gorgeous, fascinating, hilarious, thrilling, outstanding, splendid, joyful, "
        "marvelous, remarkable, inspiring, exciting, terrific, glorious, breathtaking, radiant, heartfelt, stunning"
    ),
    blame=_words(
        "terrible, bad, awful, horrible, stupid, painful, ugly, poor, pathetic, dreadful, miserable, disappointing, "
        "worthless, ridiculous, hopeless, pointless, useless, shameful, lousy, crude, grim, nasty, dismal, "
        "disastrous, disgusting, obnoxious, horrid, idiotic, unpleasant, joyless, insulting, appalling"
    ),
    plain=MILD.plain,
)
FEELINGS = Opinion(
    praise=_words(
        "happy, amazed, delighted, hopeful, pleased, thrilled, inspired, glad, satisfied, impressed, charmed, "
        "grateful, "
        "excited, cheerful, proud, amused, fascinated, joyful, thankful, entertained, enchanted, relaxed"
    ),
    blame=_words(
        "bored, sad, angry, disappointed, tired, annoyed, frustrated, confused, unhappy, miserable, exhausted, upset, "
        "irritated, depressed, cheated, numb, restless, lonely, disgusted, furious, embarrassed, dissatisfied"
    ),
    plain=_words("sleepy, unmoved, hungry, speechless, awake, thirsty, untouched"),
)
VERDICTS = Opinion(
    praise=_words(
        "joy, delight, masterpiece, pleasure, success, triumph, treasure, gift, gem, marvel, miracle, winner, treat, "
        "surprise, jewel, inspiration, blessing"
    ),
    blame=_words(
        "mess, failure, waste, disaster, disappointment, bore, mistake, shame, tragedy, flop, nightmare, struggle, "
        "insult, fiasco, misery, embarrassment, catastrophe"
    ),
    plain=_words("puzzle, routine, sketch, exercise, mixture, riddle, lesson, portrait"),
)
COMPARATIVES = Opinion(
    praise=_words("better, funnier, stronger, smarter, richer, warmer, brighter, livelier, nicer, cleverer, kinder"),
    blame=_words("worse, weaker, duller, poorer, lazier, uglier, gloomier, lamer, sadder, dumber, crueler"),
    plain=_words("slower, longer, shorter, quieter, simpler, louder, faster, darker, lighter, softer"),
)
# Base forms; all are regular.
REACTIONS = Opinion(
    praise=_words("love, enjoy, like, admire, adore, appreciate, praise, cherish, welcome, applaud, celebrate"),
    blame=_words("hate, dislike, despise, resent, loathe, dread, mock, doubt, reject, condemn, criticize"),
    plain=_words("notice, expect, remember, follow, watch, study"),
)

# Only after a verb: `a so dull film` is not English.
PREDICATE_BOOSTERS = _words("so, quite, rather")
BOOSTERS = _words("very, really, extremely, incredibly, remarkably, particularly, unusually, exceptionally")
# For strong words, which do not go with `very`.
ABSOLUTES = _words("really, absolutely, completely, utterly, totally, simply, thoroughly")
DAMPENERS = _words("somewhat, slightly, almost, kind of, barely, sort of, partly, a little, occasionally")

ACTS = _words("first act, second act, first half, second half, third act, middle, prologue, last act")
NUMBERS = _words("two, three, five, ten, seven, twenty, four, six, thirty, forty")
