"""What the synthetic speakers say: the sentences of the embedded model's training speech.

Four sources, mixed because each teaches something else. Debian's `fortunes` and the examples in WordNet's entries
(Fellbaum 1998) are real, varied English. The phrase grammar below is how people talk to each other. Word mixes make
no sense at all, so a model that wants to say them right has to read the text instead of guessing the next word: the
10 000 most frequent words of English (`wordfreq`), in half of the mixes as often as people use them, and rarer ones
from a dictionary.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

from csm.errors import InputError

FORTUNES = Path("/usr/share/games/fortunes")
WORDNET = Path("/usr/share/wordnet")
DICTIONARY = Path("/usr/share/dict/american-english")

SHORT_TURNS = """
Hi. Hello. Hey there. Yes. No. Maybe. Sure. Okay. Right. Really? Thanks. Thank you. Welcome. Sorry. Please. Goodbye.
See you. Good morning. Good night. Good evening. Of course. Not yet. Not really. I see. I know. Me too. Come on. Oh no.
Well done. Why not? What now? How so? Never mind. No problem. All right. Go ahead. Hold on. Wait. Stop. Look. Listen.
Exactly. Absolutely. Perfect. Wonderful. Great. Fine. Nice. Cool. Wow. Yes, please. No, thanks. I agree. That's it.
""".replace("\n", " ").strip()

# Slots of the phrase grammar. A word in braces in a phrase is replaced by one of these.
SLOTS: dict[str, str] = {
    "open": "well, | so, | oh, | and | but | you know, | honestly, | actually, | look, | yes, | no, | okay, | right, | hey, | | | | | | | |",
    "who": "my brother | my sister | my mother | my father | the teacher | the doctor | our neighbor | her friend | his boss | the driver | "
    "the girl next door | that old man | a friend of mine | the whole family | nobody | everyone | somebody | the captain | the cook",
    "pron": "I | you | we | they",
    "thing": "the book | the key | a letter | the car | my phone | the table | that song | the picture | a ticket | the window | the door | "
    "your bag | the old clock | a cup of coffee | the blue shirt | some bread | the red box | a glass of water | the computer | "
    "the radio | my bicycle | his coat | the garden | a warm blanket | the map | the camera | an apple | the paper | our dinner",
    "place": "the station | the kitchen | the park | the office | school | the beach | the river | the city | the market | the library | "
    "the hospital | the garden | the corner | the bridge | home | the mountains | the airport | the shop | the house | the village",
    "time": "today | tomorrow | tonight | this morning | next week | on Monday | on Friday | on Sunday | in the evening | after lunch | "
    "before dinner | at noon | last night | every day | right now | in an hour | in the summer | all winter | soon | later",
    "adj": "good | bad | new | old | big | small | happy | sad | quick | slow | warm | cold | bright | dark | quiet | loud | strange | easy | "
    "hard | funny | clever | tired | hungry | late | early | safe | useful | expensive | beautiful | important | different | simple",
    "verb": "see | find | buy | bring | take | move | clean | open | close | carry | lose | keep | need | want | like | hear | fix | forget | "
    "remember | paint | draw | sell | send | show | wash | watch | break | hold | leave | use",
    "act": "go for a walk | cook dinner | read a book | play the piano | learn to swim | call my mother | take the train | stay at home | "
    "watch a movie | drink some tea | write a letter | listen to music | clean the kitchen | work late | sleep for a while | ride a horse | "
    "plant a tree | wait for the bus | talk about it | start again | make some soup | look at the stars | leave early | fix the roof",
    "doing": "walking to work | looking for a job | reading the news | cooking rice | singing a song | driving home | waiting outside | "
    "painting the fence | learning French | thinking about it | running in the rain | playing chess | washing the dishes | telling a story",
    "number": "one | two | three | four | five | six | seven | eight | nine | ten | eleven | twelve | twenty | thirty | a hundred",
    "hour": "one | two | three | four | five | six | seven | eight | nine | ten | eleven | twelve",
    "unit": "days | hours | minutes | years | people | dogs | cats | times | weeks | friends | children | pages | miles | dollars | birds",
    "weather": "raining | snowing | getting dark | cold outside | windy | a lovely day | too hot | cloudy | sunny again | freezing",
    "feel": "think | believe | hope | guess | know | am sure | was afraid | heard | thought | suppose",
    "food": "pizza | soup | rice | bread | cheese | chicken | fish | salad | cake | chocolate | ice cream | an orange | fresh fruit | breakfast",
    "subject": "the weather | music | the game | the meeting | history | science | the future | the story | money | politics | the plan | art",
    "not": "didn't | couldn't | wouldn't | shouldn't | can't | won't | don't",
    "is": "he's | she's | I'm | we're | they're | you're | nobody's | everyone's | that's why he's",
    "will": "I'd | we'd | you'd | he'd | she'd | they'd | I'll | we'll | you'll | he'll | she'll | they'll | who'd | who'll",
    "has": "I've | we've | you've | they've | he's | she's | I haven't | we haven't | he hasn't | she hasn't | they haven't | you hadn't",
    "was": "it wasn't | it isn't | that isn't | he wasn't | she isn't | they weren't | we aren't | you aren't | that's | it's | what's so | there's nothing",
    "done": "seen | found | lost | bought | fixed | forgotten | heard | finished | taken | brought | left | used | tried | opened | hidden",
    "when": "on Saturday | on Tuesday | on Wednesday | on Thursday | since Sunday | in January | in March | in April | last June | in July | by August | "
    "in September | in October | until November | in December | at two o'clock | at seven o'clock | around nine o'clock | by Christmas | at midnight | "
    "yesterday | the day before yesterday | half an hour ago | a week ago | for a long time | since last year | this afternoon | in spring | next month",
    "end": "| | | | | , please | , right | , I think | , you know | , for sure | , my friend | , of course",
}

PHRASES: tuple[str, ...] = (
    "{open} I {feel} {who} will {act} {time}.",
    "{open} can you {verb} {thing} {time}?",
    "{open} {who} is {doing}{end}.",
    "{open} do you want to {act}?",
    "{open} let us {act} {time}.",
    "{open} I would like {food}{end}.",
    "{open} it is {weather}{end}.",
    "{open} where did you {verb} {thing}?",
    "{open} I left {thing} at {place} {time}.",
    "{open} that sounds {adj}.",
    "{open} this is a very {adj} idea.",
    "{open} how do you {verb} {thing}?",
    "{open} we have {number} {unit} left.",
    "{open} there are {number} {unit} in {place}.",
    "{open} why is {who} so {adj} {time}?",
    "{open} {pron} never {verb} {thing}.",
    "{open} I was {doing} when you called.",
    "{open} did you hear about {subject}?",
    "{open} tell me about {subject}{end}.",
    "{open} it took {number} {unit} to {verb} {thing}.",
    "{open} I can't {verb} {thing} without you.",
    "{open} what a {adj} surprise.",
    "{open} are you {adj} or just {adj}?",
    "{open} I don't know what to say about {subject}.",
    "{open} we should {act} together {time}.",
    "{open} {who} wants to {verb} {thing}.",
    "{open} my favorite food is {food}.",
    "{open} is it {weather}?",
    "{open} she said it was {adj}, but I don't agree.",
    "{open} he has been {doing} for {number} {unit}.",
    "{open} please {verb} {thing}.",
    "{open} I'm going to {place} {time}.",
    "{open} who is going to {verb} {thing}?",
    "{open} when will you be at {place}?",
    "{open} if it is {weather}, {pron} can {act}.",
    "{open} {pron} used to {act} {time}.",
    "{open} thank you for {doing}.",
    "{open} I {feel} it is too {adj} to {act}.",
    "{open} you look {adj} {time}.",
    "{open} what do you think of {subject}?",
    "{open} could we meet at {place} {time}?",
    "{open} nothing is as {adj} as {thing}.",
    "{open} that was the most {adj} part.",
    "{open} {who} gave me {thing}{end}.",
    "{open} I'll {verb} {thing} if you {verb} {thing}.",
    "{open} don't {verb} {thing} {time}.",
    "{open} they sell {food} at {place}.",
    "{open} have you ever tried to {act}?",
    "{open} I've never been to {place} {time}.",
    "{open} it's not {adj}, it's {adj}.",
    "{open} {pron} can see {place} from {place}.",
    "{open} we talked about {subject} for {number} {unit}.",
)

CONTRACTED: tuple[str, ...] = (
    "{open} {pron} {not} {verb} {thing} {when}.",
    "{open} I {not} {act} {when}.",
    "{open} {who} {not} {act}{end}.",
    "{open} {pron} {not} know {who} was {doing}.",
    "{open} why {not} we {act} {time}?",
    "{open} {not} you {verb} {thing} {when}?",
    "{open} {is} {doing} {when}.",
    "{open} {is} too {adj} to {act}.",
    "{open} {is} not {adj}, {is} just {adj}.",
    "{open} {is} going to {verb} {thing} {when}.",
    "{open} {will} rather {act} than {act}.",
    "{open} {will} {act} {when}.",
    "{open} {will} never {verb} {thing} again.",
    "{open} if {pron} {not} {verb} {thing}, {will} have to {act}.",
    "{open} {has} {done} {thing} {when}.",
    "{open} {has} been {doing} {when}.",
    "{open} {was} {adj} {when}.",
    "{open} {was} as {adj} as {thing}.",
    "{open} I think {was} {adj}, and {is} {adj} too.",
    "{open} let's {act} {when}.",
    "{open} let's not {verb} {thing}{end}.",
    "{open} there's {thing} in {place}.",
    "{open} there wasn't any {food} left {when}.",
    "{open} what's {who} doing at {place}?",
    "{open} what'll you do if {was} {adj}?",
    "{open} who's {doing} {when}?",
    "{open} where's {thing}? I {not} {verb} it.",
    "{open} how's {who} {when}?",
    "{open} here's {thing}, {is} {adj}{end}.",
    "{open} isn't {who} {doing}?",
    "{open} aren't you {adj} {when}?",
    "{open} it's {hour} o'clock, and {is} still {doing}.",
    "{open} it's been {number} {unit} since {pron} {done} {thing}.",
    "{open} {pron} should've {done} {thing} {when}.",
    "{open} I'd say {was} {adj}{end}.",
    "{open} that's what {who} said {when}.",
    "{open} {who} said {is} {doing}, but {was} {adj}.",
)
CONTRACTIONS = (
    "I'm you're he's she's it's we're they're I've you've we've they've I'd you'd he'd she'd we'd they'd I'll you'll he'll "
    "she'll it'll we'll they'll isn't aren't wasn't weren't don't doesn't didn't can't couldn't won't wouldn't shouldn't "
    "haven't hasn't hadn't let's that's there's here's what's who's where's how's what'll that'll o'clock needn't mustn't"
).split()

TWO_LETTERS = frozenset(
    "to of in is it on be as at he by my or we an so me if up do no us go am oh hi ah eh uh ow um".split()
)
ABBREVIATIONS = frozenset(
    "etc vs inc pro tho vol rep gen sec con mar min non app sub iii vii viii xii xiv xvi xxi adj adv abbr assn asst "
    "atty ave blvd capt cert dept dist div est excl fem fig fut govt hgt hon hosp hwy ref inst intl lieut mfg misc "
    "mgr msg mtg natl obj orig pkg pref prob prof pron pseud publ recd rte subj temp univ usu var vert wk wkly".split()
)
COARSE = re.compile(
    "fuck|shit|cunt|bitch|whore|slut|nigg[aeu]|^fag|^retard(?!ant)|^rap(ed?|es|ing|ists?)$|^ass(es)?$|asshole|porn"
    "|^(cock|dick|cum|tit|spic|kike|gook|coon|dyke|homo|wop|dago)s?$|^puss(y|ies)$|^cumming$|bastard|^wank|^chink"
    "|^queer|^trann(y|ies)|^negro|^penis|^vagina|^molest|^pa?edophil|^anal$|^suicid"
)

WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)?")


def wording(text: str) -> str:
    """Lower-case words only: two sentences with the same words are the same sentence."""
    return " ".join(WORD.findall(text.lower()))


def speakable(text: str, most_words: int = 14) -> bool:
    """Whether every character can be read out as it stands, and the sentence is of a length people say."""
    words = text.split()
    return (
        1 <= len(words) <= most_words
        and re.fullmatch(r"[A-Za-z ,.?!';:-]+", text) is not None
        and not re.search(r"[A-Z]{2}|--|\.\.|(?<!')\b[b-hj-zB-HJ-Z]\b(?!')", text)
        and all(len(word) <= 14 for word in words)
    )


def fortune_sentences(folder: Path = FORTUNES) -> list[str]:
    """All distinct sentences of 3 to 14 words in Debian's fortunes.

    Raises `InputError` when the packages `fortunes` and `fortunes-min` are missing.
    """
    files = sorted(folder.glob("*.u8"))
    if not files:
        raise InputError(f"No fortunes in {folder}: install the Debian packages fortunes and fortunes-min.")
    seen: dict[str, str] = {}
    for file in files:
        for fortune in file.read_text(encoding="utf-8", errors="ignore").split("\n%\n"):
            plain = re.sub(r"\s+", " ", re.split(r"\n\s*--", fortune)[0]).replace("’", "'")
            for sentence in re.split(r"(?<=[.?!])\s+", plain):
                sentence = sentence.strip(" \"'")
                if len(sentence.split()) >= 3 and sentence[-1:] in ".?!" and speakable(sentence):
                    seen.setdefault(wording(sentence), sentence)
    return list(seen.values())


def wordnet_examples(folder: Path = WORDNET) -> list[str]:
    """All distinct examples of 3 to 12 words in WordNet's entries, written as sentences.

    Raises `InputError` when the package `wordnet-base` is missing.
    """
    files = sorted(folder.glob("data.*"))
    if not files:
        raise InputError(f"No WordNet in {folder}: install the Debian package wordnet-base.")
    seen: dict[str, str] = {}
    for file in files:
        for line in file.read_text(encoding="utf-8", errors="ignore").splitlines():
            for example in re.findall(r'"([^"]+)"', line.partition("|")[2]):
                words = example.split()
                polite = not any(COARSE.search(word) for word in wording(example).split())
                if 3 <= len(words) <= 12 and polite and speakable(example):
                    text = example[0].upper() + example[1:].rstrip(" ,;:-")
                    seen.setdefault(wording(text), text if text[-1] in ".?!" else text + ".")
    return list(seen.values())


def phrase(rng: random.Random, patterns: tuple[str, ...] = PHRASES) -> str:
    """One sentence of the phrase grammar."""

    def fill(match: re.Match[str]) -> str:
        return rng.choice(SLOTS[match[1]].split("|")).strip()

    text = re.sub(r"\{(\w+)\}", fill, rng.choice(patterns))
    text = re.sub(r"\s+", " ", re.sub(r"\s+([,.?!])", r"\1", text)).strip()
    text = re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)
    return text[0].upper() + text[1:]


def word_mix(rng: random.Random, common: list[str], rare: list[str]) -> str:
    """A sentence-shaped list of 3 to 10 unrelated words, 70 % of them common, sometimes with a comma inside; in one
    of six a contraction. In half of the sentences the common words come as in speech: the frequent ones, listed first,
    more often."""
    reach = 3 if rng.random() < 0.5 else 1  # the rank's power: 1 draws all words equally often, 3 favours the first
    words = [
        common[int(len(common) * rng.random() ** reach)] if rng.random() < 0.7 else rng.choice(rare)
        for _ in range(rng.randint(3, 10))
    ]
    if rng.random() < 1 / 6:
        words[rng.randrange(len(words))] = rng.choice(CONTRACTIONS)
    if rng.random() < 0.3:
        words[rng.randrange(len(words) - 1)] += ","
    text = " ".join(words)
    return text[0].upper() + text[1:] + rng.choice(".....?!")


def vocabulary(size: int = 10_000) -> tuple[list[str], list[str]]:
    """The `size` most frequent everyday words of English, and the short words of the system's dictionary.

    What the dictionary does not know in lower case is a name, an abbreviation or a slip. Raises `InputError` when
    the dictionary or `wordfreq` is not installed.
    """
    try:
        from wordfreq import top_n_list
    except ImportError as error:
        raise InputError("The frequent words are missing: install the PyPI package wordfreq.") from error
    if not DICTIONARY.exists():
        raise InputError(f"There is no {DICTIONARY}: install the Debian package wamerican.")
    known = {word for word in DICTIONARY.read_text().split() if pronounceable(word)}
    common = [word for word in top_n_list("en", 2 * size) if word in known][:size]
    return common, sorted(word for word in known if 3 <= len(word) <= 9)


def pronounceable(word: str) -> bool:
    """Whether a dictionary entry of 2 to 12 small letters is a word that can be said as such, and to anybody."""
    return (
        re.fullmatch(r"[a-z]{2,12}", word) is not None
        and (word in TWO_LETTERS if len(word) == 2 else re.search("[aeiouy]", word) is not None)
        and word not in ABBREVIATIONS
        and not COARSE.search(word)
    )


def training_sentences(rng: random.Random, phrases: int, mixes: int) -> Iterator[str]:
    """Every fortune and WordNet's examples, then `phrases` of the grammar and a quarter as many with contractions, short turns, and then
    `mixes` of unrelated words."""
    common, rare = vocabulary()
    yield from fortune_sentences()
    yield from wordnet_examples()
    yield from (phrase(rng) for _ in range(phrases))
    yield from (phrase(rng, CONTRACTED) for _ in range(phrases // 4))
    short = re.findall(r"[^.?!]+[.?!]", SHORT_TURNS)
    yield from (rng.choice(short).strip() for _ in range(phrases // 12))
    yield from (word_mix(rng, common, rare) for _ in range(mixes))
