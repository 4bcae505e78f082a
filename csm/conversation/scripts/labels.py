"""Whose line it is: labels as people write them, `**Host:**`, `[S1]`, `JOHN (whispering):`, and what only looks so."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from csm.errors import InputError

MAX_LABEL = 24  # characters
MAX_LABEL_WORDS = 3  # of any kind
MAX_NAME_WORDS = 5  # where each is written as in a name
_FAR = 160  # characters in which a label, a direction and a time have room

_LABEL = re.compile(r"[^\W\d_][\w .&'’#+-]*")
_TIME = r"\d{1,3}:\d\d(?::\d\d)?(?:[.,:]\d{1,3})?"
_TIMES = re.compile(rf"(?:\[{_TIME}\]\s*|\({_TIME}\)\s*)+[-–—]?\s*")
_BARE_TIME = re.compile(rf"{_TIME}\s*[-–—|]?\s+(?=[^\W\d_*\[])")
_WORD_TIMES = re.compile(rf"<{_TIME}>\s?")
_ITEM = re.compile(r"(?:>\s*)?(?:(?:[-*•–—]|#{1,6}|\d{1,4}[.)])\s+)?")
_MARK = re.compile(r"\*{1,3}|_{1,3}|`")
_BESIDE = re.compile(r"(.*?)\s*[(\[（]([^()（）\[\]]{1,80})[)\]）]\s*")
_SLOT = re.compile(r"\[((?:S|Speaker|SPEAKER|Person|Voice|Host|Guest)[ _-]?\d{1,2})\]\s*[:：]?\s*")
_BRACKETED = re.compile(r"\[([^\[\]]{1,24})\]\s*([:：])?\s*(?=\S)")
_NUMBER = re.compile(r"\[(\d{1,2})\]\s*[:：]?\s*(?=\S)")
_ALONE = re.compile(rf"(.{{1,{MAX_LABEL}}}?)\s+[(\[]?{_TIME}[)\]]?")
_PARTICLES = frozenset("van von der den de di da dos del la le of the and & bin ibn al el und y".split())
# No label of several words has one of these: it is the beginning of a sentence.
_SENTENCE = frozenset(
    "i he she it we they you this that these those there here is are was were am be been has have had do does did will "
    "would can could should must said says say asked asks told tells replied answered wrote thought added went came if "
    "when because while although but so or then not what why how who which where my your his their our".split()
)
# What opens a line of plain text as often as it names somebody.
_HEADWORDS = frozenset(
    "note,notes,side note,remember,reminder,warning,caution,danger,attention,important,tip,tips,hint,example,eg,"
    "e.g.,ie,i.e.,ps,p.s.,pps,p.p.s.,nb,n.b.,fyi,tldr,btw,todo,update,edit,correction,disclaimer,spoiler,summary,"
    "conclusion,abstract,introduction,intro,outro,overview,background,title,subtitle,subject,topic,author,date,"
    "time,location,place,address,phone,email,source,sources,reference,references,link,url,website,re,fwd,from,to,"
    "cc,chapter,part,section,act,scene,episode,season,volume,book,verse,page,line,paragraph,figure,fig.,fig,table,"
    "step,phase,stage,level,lesson,unit,module,exercise,task,question,problem,solution,answer,option,item,case,day,"
    "week,month,year,round,rule,fact,myth,reason,number,no.,version,appendix,first,firstly,second,secondly,third,"
    "thirdly,next,then,finally,lastly,however,therefore,also,result,results,goal,ingredients,directions,"
    "instructions,preparation,method,price,cost,total,breaking,news,breaking news,headline,weather,sport,sports,"
    "traffic,advice,moral,quote,definition,meaning,translation,agenda,contents,setting,character,characters,cast,"
    "music,sound,sfx,narration,description,keyword,keywords,tag,tags,category,categories,see also,read more,"
    "good news,bad news,the point,the result,the answer,the question,the problem,the truth,the good,the bad,"
    "in short,in other words,for example,for instance,in summary,in conclusion,last but not least,once again,"
    "one more thing".split(",")
)
_COUNTED = re.compile(r"(.*?)[ #]*(?:\d+(?:\.\d+)?|[ivxlc]+|one|two|three|four|five|six|seven|eight|nine|ten)?", re.I)


@dataclass(frozen=True)
class Peeled:
    """A line taken apart: a label that it may have, the text behind it, and what stood beside the label.

    `bare` is the text should the label be none. `sure` labels need not come back to be believed; those in `bracketed`
    form must, or they are directions. `dressed` lines have more than a label and its colon.
    """

    label: str | None
    text: str
    bare: str
    directions: tuple[str, ...] = ()
    sure: bool = False
    bracketed: bool = False
    dressed: bool = False


def peel(line: str) -> Peeled:
    """Take a cleaned line apart. The contract's own form, `Name: text`, is never `dressed`."""
    if not any(mark in line for mark in ":：["):
        return Peeled(None, line, line)
    whole = line
    if "<" in line:
        line = _WORD_TIMES.sub("", line).strip()
    if timed := _TIMES.match(line):
        line = line[timed.end() :]
    found = _peeled(line)
    if line == whole == found.bare:
        return found
    return replace(found, bare=line, dressed=found.dressed or line != whole)


def _peeled(line: str) -> Peeled:
    for start in dict.fromkeys((0, _item(line))):
        rest = line[start:]
        if match := _SLOT.match(rest):
            return Peeled(match[1].replace("_", " "), rest[match.end() :], line, sure=True, dressed=True)
        if match := _NUMBER.match(rest):
            return Peeled(f"Speaker {match[1]}", rest[match.end() :], line, bracketed=True, dressed=True)
        if (match := _BRACKETED.match(rest)) and (label := _label(match[1])):
            colon = bool(match[2])
            return Peeled(label, rest[match.end() :], line, sure=colon, bracketed=not colon, dressed=True)
        if found := _colon(rest):
            return replace(found, dressed=found.dressed or start > 0)
    if (clock := _BARE_TIME.match(line)) and (found := _colon(line[clock.end() :])):
        return replace(found, dressed=True)
    if (alone := _ALONE.fullmatch(line)) and (label := _label(alone[1].strip())) and named_like(label):
        return Peeled(label, "", line, dressed=True)
    return Peeled(None, line, line)


def plain(line: str) -> Peeled:
    """Take a cleaned line apart by the contract alone: `Name: text` or text, not a letter left out."""
    found = _colon(line)
    return found if found and not found.dressed else Peeled(None, line, line)


def headword(label: str) -> bool:
    """Whether this opens plain text as often as it names a speaker: “Note”, “Chapter 1”."""
    counted = _COUNTED.fullmatch(label)
    return label.casefold() in _HEADWORDS or (counted is not None and counted[1].casefold() in _HEADWORDS)


def unmistakable(label: str) -> bool:
    """Whether a label that stands there once is one all the same: a single letter, “Speaker 1”."""
    return len(label) == 1 or (label[-1].isdigit() and len(label.split()) <= 2 and not headword(label))


def named_like(label: str) -> bool:
    """Whether each word is written as in a name: Jean Luc van Damme."""
    return all(word in _PARTICLES or not word[0].islower() for word in label.split())


def fitted(name: object, number: int) -> str:
    """The name of a speaker from a file with fields of its own, as a label. Raises `InputError` with the line."""
    words = re.sub(r"[^\w .&'’#+-]", " ", str(name)).replace("_", " ").split()
    label = " ".join(words)
    if not label:
        raise InputError(f"Line {number} does not say who speaks: give a name.")
    label = label if label[0].isalpha() else f"Speaker {label}"
    if len(label) > MAX_LABEL:
        raise InputError(f"Line {number}: the speaker's name “{label}” is longer than {MAX_LABEL} letters; shorten it.")
    return label.upper() if len(label) == 1 else label


def _item(line: str) -> int:
    match = _ITEM.match(line)
    return match.end() if match else 0


def _colon(line: str) -> Peeled | None:
    """`Name: text`, in bold or not, with or without a direction or a time beside the name."""
    at = _end_of_head(line)
    if at is None:
        return None
    head, rest = line[:at], line[at + 1 :]
    dressed = False
    if mark := _MARK.match(head):
        head = head[mark.end() :]
        if head.endswith(mark[0]):
            head = head[: -mark.end()]
        elif rest.startswith(mark[0]):
            rest = rest[mark.end() :]
        elif (beside := head.find(mark[0])) > 0 and head[beside + mark.end() :].lstrip()[:1] in "([":
            head = head[:beside] + head[beside + mark.end() :]
        else:
            return None
        dressed = True
    directions: tuple[str, ...] = ()
    if beside_name := _BESIDE.fullmatch(head):
        head, inside, dressed = beside_name[1], beside_name[2].strip(), True
        if any(map(str.isalpha, inside)):
            directions = (inside,)
        elif not re.fullmatch(_TIME, inside):
            head = f"{head} {inside}"
    label = _label(head.strip())
    if label is None:
        return None
    attached = bool(rest) and not rest.startswith(" ") and not dressed
    # "http://…", "C:\…" and "It is 5:30" are text; "A:Hello" is a label.
    if attached and (len(label.split()) > 1 or rest[0] in "/\\" or (label[-1].isdigit() and rest[0].isdigit())):
        return None
    return Peeled(label, rest.strip(), line, directions, dressed=dressed)


def _end_of_head(line: str) -> int | None:
    """Where the first colon outside of brackets is."""
    depth = 0
    for index, character in enumerate(line[:_FAR]):
        if character in "([（":
            depth += 1
        elif character in ")]）":
            depth = max(0, depth - 1)
        elif character in ":：" and not depth:
            return index
    return None


def _label(name: str) -> str | None:
    """A label as it is shown, or None for what can't be one."""
    if not _LABEL.fullmatch(name) or len(name) > MAX_LABEL:
        return None
    words = name.split()
    if len(words) > (MAX_NAME_WORDS if named_like(name) else MAX_LABEL_WORDS):
        return None
    # “He said” is the beginning of a sentence, “Dr. Who” is not.
    if len(words) > 1 and (words[0].casefold() in _SENTENCE or not _SENTENCE.isdisjoint(words)) and not name.isupper():
        return None
    return name.upper() if len(name) == 1 else name
