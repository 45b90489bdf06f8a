"""Which columns of a table are read, whatever program wrote it; what is no such table is refused in one line."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from raysweep.errors import DataError
from raysweep.job.spec import DataSpec
from raysweep.trial.data.corpora import load_splits
from raysweep.trial.data.labelled import classes_of, load_sentences, read_sentences

ROWS = [("good film", "pos"), ("bad film", "neg")]
READ = [("pos", "good film", None), ("neg", "bad film", None)]


def spec(path: Path, **data: Any) -> DataSpec:
    return DataSpec.model_validate({"name": str(path), **data})


def table(path: Path, content: str | bytes, **data: Any) -> list[Any]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_sentences(path, spec(path, **data)))


def refusal(path: Path, content: str | bytes, **data: Any) -> str:
    with pytest.raises(DataError) as caught:
        table(path, content, **data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def csv_of(header: str, delimiter: str = ",", rows: Any = ROWS) -> str:
    return "\n".join([header.replace(",", delimiter), *(delimiter.join(row) for row in rows)]) + "\n"


@pytest.mark.parametrize(
    "header",
    ["sentence,label", "text,label", "review,sentiment", "Sentence,Label", "sentence, label", '"Text","Class"',
     "TWEET,Polarity", "content,category"],
)  # fmt: skip
def test_columns_are_known_by_their_names(tmp_path: Path, header: str) -> None:
    assert table(tmp_path / "a.csv", csv_of(header)) == READ
    wider = [("7", text, label, "x") for text, label in ROWS]
    assert table(tmp_path / "a.csv", csv_of(f"id,{header},title", rows=wider)) == READ


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".CSV"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_spreadsheets_write_is_read(tmp_path: Path, suffix: str, delimiter: str, encoding: str) -> None:
    content = csv_of("text,label", delimiter).replace("\n", "\r\n").encode(encoding)
    assert table(tmp_path / f"a{suffix}", content) == READ


def test_labels_are_stripped_and_rows_without_a_cell_left_out(tmp_path: Path) -> None:
    assert table(tmp_path / "a.csv", "text,label\n\ngood film , pos \n , \nbad film,neg\n\n") == READ


def test_quoted_cells_may_hold_delimiters_quotes_and_line_breaks(tmp_path: Path) -> None:
    content = 'text,label\n"one, ""two""\nthree",a\nfour,b\n'
    assert [row.first for row in table(tmp_path / "a.csv", content)] == ['one, "two"\nthree', "four"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("good film,pos\nbad film,neg\n", "data.header: false"),
        ("text,sentence,label\na,b,c\n", "each of 'text', 'sentence' could be the column of texts"),
        ("text,label,class\na,b,c\n", "each of 'label', 'class' could be the column of labels"),
        ("text,Text,label\na,b,c\n", "each of 'text', 'Text' could be the column of texts"),
        ("text,label,label\na,b,c\n", "each of 'label', 'label' could be"),
        ("text,stars\na,1\n", "names no column of labels"),
        ("title,label\na,1\n", "names no column of texts"),
        ("text,label\na\n", "row 2: 1 cells, but the first line has 2"),
        ("text,label\na,b\nc, d,e\n", "row 3: 3 cells"),
        ("text,label\na,b\nc,\n", "row 3: no sentence with a label"),
        ("text,label\na,b\n,c\n", "row 3: no sentence with a label"),
        ('text,label\n"a,b\nc,d\n', "row 3: unexpected end of data"),
        ("text,label\n", "has no rows"),
        ("text,label\ncaf\xe9,a\n".encode("latin-1"), "is not UTF-8 text (byte 14)"),
        ("text,label\na,b\n".encode("utf-16-le"), "many characters are NUL"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "pointer of Git LFS"),
    ],
)
def test_a_table_that_is_none_is_refused_with_the_way_out(tmp_path: Path, content: str | bytes, said: str) -> None:
    assert said in refusal(tmp_path / "a.csv", content)


def test_a_job_names_columns(tmp_path: Path) -> None:
    content = "id,text,sentence,stars\n1,x,good film,pos\n2,y,bad film,neg\n"
    assert table(tmp_path / "a.csv", content, columns={"text": "Sentence", "label": " stars"}) == READ
    pairs = table(tmp_path / "a.csv", content, columns={"text": "text", "second": "sentence", "label": "stars"})
    assert pairs[0] == ("pos", "x", "good film")
    assert "Did you mean 'stars'?" in refusal(tmp_path / "a.csv", content, columns={"text": "text", "label": "star"})
    assert "one column twice" in refusal(tmp_path / "a.csv", content, columns={"text": "text", "label": "text"})
    assert "needs data.columns.text" in refusal(tmp_path / "a.csv", content, columns={"second": "text"})


def test_a_table_without_a_header_says_so(tmp_path: Path) -> None:
    assert table(tmp_path / "a.csv", csv_of("good film,pos", rows=ROWS[1:]), header=False) == READ
    assert (
        table(tmp_path / "a.csv", csv_of("good film;pos", ";", rows=ROWS[1:]).replace(";", ";"), header=False) == READ
    )
    three = "1,good film,pos\n2,bad film,neg\n"
    assert "3 columns and no header. Say by data.columns.text" in refusal(tmp_path / "a.csv", three, header=False)
    assert table(tmp_path / "a.csv", three, header=False, columns={"text": "2", "label": "3"}) == READ
    assert "is a header" in refusal(tmp_path / "a.csv", csv_of("sentence,label"), header=False)
    assert "columns have names" in refusal(tmp_path / "a.jsonl", "{}", header=False).replace("its ", "")


@pytest.mark.parametrize("pack", [gzip, bz2, lzma])
def test_json_lines_are_read_by_their_keys_compressed_or_not(tmp_path: Path, pack: Any) -> None:
    lines = "".join(json.dumps({"id": 7, "text": text, "label": label}) + "\n" for text, label in ROWS)
    suffix = {gzip: ".gz", bz2: ".bz2", lzma: ".xz"}[pack]
    assert table(tmp_path / f"a.jsonl{suffix}", pack.compress(lines.encode())) == READ
    assert table(tmp_path / "a.JSONL", codecs.BOM_UTF8 + lines.encode()) == READ
    assert table(tmp_path / "a.json", json.dumps([json.loads(line) for line in lines.splitlines()])) == READ
    assert "cannot be read" in refusal(tmp_path / f"a.jsonl{suffix}", pack.compress(lines.encode())[:-9])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a", "label": 1}\nnonsense\n', "row 2 is not valid JSON"),
        ('{"text": "a", "label": 1}\n[1]\n', "row 2 is no JSON object"),
        ('{"text": "a", "label": 1}\n{"text": "b"}\n', "row 2: no sentence with a label"),
        ('{"text": "a", "label": null}\n', "row 1: no sentence with a label"),
        ('{"text": ["a"], "label": 1}\n', "row 1: no sentence with a label"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_json_that_is_no_table_is_refused_with_its_row(tmp_path: Path, content: str, said: str) -> None:
    assert said in refusal(tmp_path / "a.jsonl", content)


def test_labels_of_any_type_have_the_names_that_a_csv_would_have(tmp_path: Path) -> None:
    lines = [{"text": "a", "label": label} for label in (1, 1.0, "1", True, 0.5)]
    found = table(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert [row.label for row in found] == ["1", "1", "1", "true", "0.5"]


def test_parquet_is_read_by_its_columns(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    content = {"idx": [1, 2], "text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
    pyarrow.parquet.write_table(pyarrow.table(content), tmp_path / "a.parquet")
    assert list(read_sentences(tmp_path / "a.parquet", spec(tmp_path))) == READ
    whole = (tmp_path / "a.parquet").read_bytes()
    assert "cannot be read as Parquet" in refusal(tmp_path / "a.parquet", whole[: len(whole) // 2])


def labelled(tmp_path: Path, rows: list[tuple[str, str]]) -> list[str]:
    (tmp_path / "a.csv").write_text(csv_of("text,label", rows=rows))
    data = spec(tmp_path / "a.csv")
    return list(classes_of(load_sentences(data), data))


def test_labels_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    assert labelled(tmp_path, [(f"text {number}", str(number % 3)) for number in range(60)]) == ["0", "1", "2"]
    with pytest.raises(DataError, match=r"different labels for \d+ sentences are no classes"):
        labelled(tmp_path, [(f"text {number}", f"0.{number % 50}") for number in range(60)])


def test_a_label_of_the_test_split_alone_is_refused(tmp_path: Path) -> None:
    for name, labels in (("train", "abab"), ("dev", "ba"), ("test", "ac")):
        rows = [(f"{name} {number}", label) for number, label in enumerate(labels)]
        (tmp_path / f"{name}.csv").write_text(csv_of("text,label", rows=rows))
    data = spec(tmp_path)
    with pytest.raises(DataError, match="the label 'c' of test.csv is none of the training labels: a, b"):
        classes_of(load_sentences(data), data)


@pytest.mark.parametrize(
    "content", ["text\nsecret one\n", "index\tsentence\n0\tsecret one\n", "text,label\nsecret one,-1\n"]
)
def test_a_test_split_whose_labels_are_secret_is_left_out(tmp_path: Path, content: str) -> None:
    for name, count in (("train", 40), ("dev", 10)):
        rows = [(f"{name} {number}", str(number % 2)) for number in range(count)]
        (tmp_path / f"{name}.csv").write_text(csv_of("text,label", rows=rows))
    (tmp_path / "test.csv").write_text(content)
    corpus = load_sentences(spec(tmp_path))
    assert corpus.test is None and corpus.left_out == ("test.csv",)
    with pytest.raises(DataError, match="test"):
        classes_of(load_sentences(spec(tmp_path, test="test")), spec(tmp_path))


# Texts to learn a language from.


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".csv", ".tsv", ".jsonl.gz"])
def test_a_language_model_learns_from_the_column_of_texts_alone(tmp_path: Path, suffix: str) -> None:
    rows = [(str(number), f"document {number} says hello, world" * 9, f"http://{number}") for number in range(300)]
    if "json" in suffix:
        content = "".join(json.dumps(dict(zip(("id", "text", "url"), row, strict=True))) + "\n" for row in rows)
    else:
        content = "id\ttext\turl\n" + "".join("\t".join(row) + "\n" for row in rows)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content.encode()) if suffix.endswith("gz") else content.encode())
    corpus = load_splits(spec(path))
    lines = corpus.train.content.splitlines() + corpus.choose.content.splitlines()
    assert sorted(lines) == sorted(text for _, text, _ in rows)
    assert set(corpus.train.content.splitlines()).isdisjoint(corpus.choose.content.splitlines())
    with pytest.raises(DataError, match="data.columns.text = 'body'"):
        load_splits(spec(path, columns={"text": "body"}))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b'{"text": "a"}\n{"text": "b"}\n', "holds JSON objects, not plain text. Rename it to .jsonl"),
        ("a.jsonl", b'{"id": 1}\n', "names no column of texts"),
        ("a.jsonl", b'{"text": 1}\n', "row 1: 1 is no text"),
        ("a.zst", b"abc", ".zst files are not read"),
        ("a.jsonl.zst", b"abc", ".zst files are not read"),
        ("a.pdf", b"%PDF", ".pdf files are not read"),
        ("a.pt", b"PK", ".pt files are not read"),
        ("a.txt", "text\n".encode("utf-16-le") * 9, "many characters are NUL"),
    ],
)
def test_what_holds_no_plain_text_is_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_splits(spec(tmp_path / name))
    assert said in str(caught.value)


def test_columns_are_refused_where_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain text\n" * 2000)
    for name in (str(tmp_path / "a.txt"), "python-docs"):
        with pytest.raises(DataError, match="data.columns: .* is no table"):
            load_splits(DataSpec.model_validate({"name": name, "columns": {"text": "text"}}))
        with pytest.raises(DataError, match="data.header: .* is no table"):
            load_splits(DataSpec(name=name, header=False))


def test_a_text_with_the_mark_of_a_windows_editor_begins_with_its_first_letter(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        (tmp_path / f"{name}.txt").write_bytes(codecs.BOM_UTF8 + f"first line of {name}\r\n".encode())
    assert load_splits(spec(tmp_path)).train.content == "first line of train\n"
