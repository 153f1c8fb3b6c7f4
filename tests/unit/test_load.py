"""Sources, slices, held-out prompts and counts, on made files and, where present, real ones."""

from __future__ import annotations

import csv
import json
import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparring.config import DataConfig
from sparring.data.load import Loaded, load
from sparring.errors import ConfigError, DataError

SHARED = Path(os.environ.get("SPARRING_SHARED", Path(__file__).parents[3] / "shared")) / "data"


def pairs(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(start, start + count)]


def write_jsonl(file: Path, rows: list[Any]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def read(path: str | Path, seed: int = 0, **config: Any) -> Loaded:
    return load(DataConfig(train=str(path), **config), seed)


def prompts(conversations: list[Any]) -> list[str]:
    return [turn.content for one in conversations for turn in one.messages if turn.role == "user"]


def everything(loaded: Loaded) -> set[str]:
    return set(prompts(loaded.train)) | set(prompts(loaded.eval))


# ---------------------------------------------------------------- files


def test_every_kind_of_file_gives_the_same(tmp_path: Path) -> None:
    rows = pairs(20)
    write_jsonl(tmp_path / "a.jsonl", rows)
    write_jsonl(tmp_path / "lines.json", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "data.json").write_text("\ufeff" + json.dumps({"version": 1, "data": rows}), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(rows)
    loaded = {file.name: read(file) for file in tmp_path.iterdir()}
    assert len(loaded) == 6
    assert len({one.fingerprint for one in loaded.values()}) == 1
    assert loaded["a.jsonl"].counts == {"rows": 20, "leaked": 0, "train": 18, "eval": 2, "over eval_limit": 0}
    assert loaded["a.jsonl"].description == (
        "a.jsonl as prompt_completion: 18 to train on; prompts cut from it: 2 held out"
    )
    sources = {name: {one.source for one in part.train + part.eval} for name, part in loaded.items()}
    assert "a.jsonl:20" in sources["a.jsonl"]
    assert "a.parquet[row 19]" in sources["a.parquet"]
    assert "a.csv[row 0]" in sources["a.csv"]


def test_jsonl_keeps_line_numbers_and_takes_bom_and_empty_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = [
        "",
        *(json.dumps(row) for row in pairs(3)),
        "  ",
        json.dumps({"prompt": "p", "completion": True}),
    ]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    with pytest.raises(DataError, match=r"^a\.jsonl:6: wrong type: completion is true"):
        read(file)
    loaded = read(file, bad_rows="skip")
    assert loaded.counts["rows"] == 4
    assert loaded.counts["bad: wrong type"] == 1
    assert sorted(one.source for one in loaded.train + loaded.eval) == ["a.jsonl:2", "a.jsonl:3", "a.jsonl:4"]


def test_broken_json_names_its_line_and_can_be_skipped(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    write_jsonl(file, pairs(4))
    with file.open("a") as stream:
        stream.write('{"prompt": "p"')
    with pytest.raises(DataError, match=r"^a\.jsonl:5: broken JSON: Expecting ',' delimiter at column 15"):
        read(file)
    assert read(file, bad_rows="skip").counts["bad: broken JSON"] == 1


def test_faults_of_whole_files(tmp_path: Path) -> None:
    cases = {
        "broken.json": ('[{"a": 1},\n oops]', r"broken\.json:2: broken JSON"),
        "keys.json": ('{"examples": []}', 'holds the keys examples; .* under the key "data"'),
        "number.json": ("3", "holds a int"),
        "list.jsonl": ("[1, 2]\n", r"list\.jsonl:1: wrong type: the row is \[1, 2\]"),
        "empty.jsonl": ("\n\n", "is empty"),
        "more.csv": ("question,answer\na,b,c\n", r"more\.csv\[row 0\]: broken CSV: 1 fields too many"),
        "less.csv": ("question,answer\na\n", r"less\.csv\[row 0\]: wrong type: answer is null"),
        "quote.csv": ('question,answer\na,"b\n', r"quote\.csv cannot be read"),
        "one.txt": ("just one document of words", "leaves none to train on"),
        "fake.parquet": ("PAR", r"fake\.parquet cannot be read"),
        "rows.tsv": ("a\tb", r'rows\.tsv ends in "\.tsv"; known endings: \.parquet'),
        "asked.jsonl": ('{"prompt": "p"}', "asked.jsonl has the columns prompt, which fit no format"),
    }
    for name, (text, said) in cases.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=said):
            read(tmp_path / name)
    (tmp_path / "latin.txt").write_bytes("caf\xe9 au lait".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8"):
        read(tmp_path / "latin.txt")


def test_no_answers_at_all(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"question": "q", "answer": ""}] * 3)
    with pytest.raises(DataError, match=r"a\.jsonl holds no usable answer \(3 bad: empty answer\)"):
        read(file, bad_rows="skip")


def test_long_csv_fields(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["question", "answer"], ["q1", "x" * 300_000], ["q2", "two\nlines"]])
    loaded = read(tmp_path / "a.csv")
    assert {len(one.messages[1].content) for one in loaded.train + loaded.eval} == {300_000, 9}


@pytest.mark.parametrize(
    ("text", "separator", "documents"),
    [
        ("a b\n\nc d\n \n\ne f\n", "auto", {"a b", "c d", "e f"}),
        ("a b\n\nc<|endoftext|>\nd e<|endoftext|>", "auto", {"a b\n\nc", "d e"}),
        ("a b==c d== ", "==", {"a b", "c d"}),
    ],
)
def test_plain_text_is_cut_into_documents(tmp_path: Path, text: str, separator: str, documents: set[str]) -> None:
    (tmp_path / "a.txt").write_text(text)
    loaded = read(tmp_path / "a.txt", separator=separator)
    both = loaded.train + loaded.eval
    assert {"".join(turn.content for turn in one.messages) for one in both} == documents
    assert not any(one.chat for one in both)
    assert {one.source for one in both} == {f"a.txt[row {i}]" for i in range(len(documents))}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("trian.jsonl", r'trian\.jsonl does not exist; did you mean ".*train\.jsonl"'),
        ("unlike.csv", "nothing like it lies beside it"),
        ("no/train.jsonl", "nor does its folder"),
    ],
)
def test_missing_files(tmp_path: Path, path: str, said: str) -> None:
    write_jsonl(tmp_path / "train.jsonl", pairs(3))
    with pytest.raises(DataError, match=said):
        read(tmp_path / path)


# ---------------------------------------------------------------- slices


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", range(0, 200)),
        ("", range(0, 200)),
        ("[:20]", range(0, 20)),
        ("train[:10%]", range(0, 20)),
        ("train[ 10% : 20% ]", range(20, 40)),
        ("train[190:]", range(190, 200)),
        ("[-10:]", range(190, 200)),
        ("[:-190]", range(0, 10)),
        ("[-10%:]", range(180, 200)),
        ("[:2.5%]", range(0, 5)),
        ("[:9999]", range(0, 200)),
        ("train[:]", range(0, 200)),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "json"])
def test_slices(tmp_path: Path, split: str, expected: range, kind: str) -> None:
    file = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        write_jsonl(file, pairs(200))
    elif kind == "json":
        file.write_text(json.dumps(pairs(200)))
    else:
        pq.write_table(pa.Table.from_pylist(pairs(200)), file, row_group_size=30)
    assert everything(read(file, split=split)) == {f"p{i}" for i in expected}


@pytest.mark.parametrize("split", ["train[5]", "train[a:]", "train[:", "train[1:2:3]", "train[1.5:]", "a+b", "%"])
def test_what_is_no_slice(tmp_path: Path, split: str) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", pairs(9))
    with pytest.raises(ConfigError, match=r'^data\.split: ".*" is not a split; give a name, a slice, or both'):
        read(file, split=split)
    with pytest.raises(ConfigError, match=r"^data\.eval_split: "):
        read(file, eval_split=split)


def test_slices_of_nothing_and_of_no_split(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", pairs(9))
    with pytest.raises(DataError, match=r'a\.jsonl: "\[9:\]" \(data\.split\) selects none of its 9 rows'):
        read(file, split="[9:]")
    with pytest.raises(DataError, match=r'a\.jsonl has no split "test"; known: train'):
        read(file, split="test")
    with pytest.raises(ConfigError, match=r'data\.subset "main" is for a folder or a hub id'):
        read(file, subset="main")


# ---------------------------------------------------------------- folders and the hub


def ultrachat_row(index: int) -> dict[str, Any]:
    turns = [{"content": f"p{index}", "role": "user"}, {"content": f"c{index}", "role": "assistant"}]
    return {"prompt": f"p{index}", "prompt_id": str(index), "messages": turns}


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """The layout of ultrachat_200k: two shards of train_sft, one of test_sft, and its papers."""
    data = tmp_path / "ultrachat_200k" / "data"
    data.mkdir(parents=True)
    for name, start, stop in [
        ("train_sft-00000-of-00002-a1b2", 0, 1500),
        ("train_sft-00001-of-00002-c3d4", 1500, 2000),
        ("test_sft-00000-of-00001", 1990, 2100),
    ]:
        rows = [ultrachat_row(index) for index in range(start, stop)]
        pq.write_table(pa.Table.from_pylist(rows), data / f"{name}.parquet")
    (data.parent / "README.md").write_text("# a card")
    (data.parent / "dataset_infos.json").write_text("{}")
    write_jsonl(data.parent / ".cache" / "train_sft.parquet", pairs(1))
    return data.parent


def test_hub_layout(hub_folder: Path) -> None:
    loaded = read(hub_folder, split="train_sft[:90%]", eval_split="test_sft", eval_limit=1000)
    assert prompts(loaded.train) == [f"p{i}" for i in range(1800)]
    assert prompts(loaded.eval) == [f"p{i}" for i in range(1990, 2100)]
    assert all(one.chat for one in loaded.train)
    assert loaded.train[-1].source == "train_sft-00001-of-00002-c3d4.parquet[row 299]"
    over = read(hub_folder, split="train_sft[1490:1995]", eval_split="test_sft[:50%]")
    assert prompts(over.train) == [f"p{i}" for i in range(1490, 1990)]
    assert over.counts["leaked"] == 5
    for split in ("train", "train_sfd"):
        with pytest.raises(DataError, match=r'has no split "train.*did you mean "train_sft"\? \(known: test_sft'):
            read(hub_folder, split=split)


def test_folder_of_named_files(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", pairs(20))
    write_jsonl(tmp_path / "test.jsonl", pairs(5, 18))
    (tmp_path / "LICENSE.txt").write_text("Yours.")
    loaded = read(tmp_path, eval=str(tmp_path))
    assert (loaded.counts["train"], loaded.counts["eval"], loaded.counts["leaked"]) == (18, 5, 2)


def test_folder_of_one_file_of_any_name(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "questions.jsonl", pairs(5))
    assert read(tmp_path).counts["rows"] == 5
    write_jsonl(tmp_path / "more.jsonl", pairs(5))
    with pytest.raises(DataError, match=r'has no split "train"; known: more, questions'):
        read(tmp_path)


def test_subsets_are_folders(tmp_path: Path) -> None:
    for subset, start in (("main", 0), ("socratic", 50)):
        write_jsonl(tmp_path / subset / "train-00000-of-00001.jsonl", pairs(9, start))
    assert everything(read(tmp_path, subset="socratic")) == {f"p{i}" for i in range(50, 59)}
    with pytest.raises(DataError, match=r'split "train" in several folders; set data\.subset to one of main, socr'):
        read(tmp_path)
    with pytest.raises(DataError, match=r'has no subset "mian" \(data\.subset\); did you mean "main"'):
        read(tmp_path, subset="mian")


def test_splits_that_are_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for shard in range(2):
            write_jsonl(tmp_path / "default" / split / f"000{shard}.jsonl", pairs(4, 4 * shard))
    assert read(tmp_path).counts["rows"] == 8


def test_folder_without_data(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(DataError, match=r"holds no data file; known endings: \.parquet"):
        read(tmp_path)


def test_folders_saved_by_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(pairs(30))
    rows.save_to_disk(str(tmp_path / "one"))
    both = datasets.DatasetDict({"train": rows, "validation": datasets.Dataset.from_list(pairs(6, 28))})
    both.save_to_disk(str(tmp_path / "two"))
    assert everything(read(tmp_path / "one", split="[:50%]")) == {f"p{i}" for i in range(15)}
    loaded = read(tmp_path / "two", eval_split="validation")
    assert (loaded.counts["train"], loaded.counts["eval"], loaded.counts["leaked"]) == (28, 6, 2)
    with pytest.raises(DataError, match=r'two has no split "valid"; did you mean "validation"'):
        read(tmp_path / "two", eval_split="valid")


def test_hub_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(path: str, subset: str | None, *, split: str) -> Any:
        asked.append((path, subset, split))
        if split == "trian":
            raise ValueError("Unknown split \"trian\". Should be one of ['train', 'test'].")
        if path == "gone/away":
            raise ConnectionError("Couldn't reach\n'gone/away' on the Hub")
        return datasets.Dataset.from_list(pairs(20))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read("some/set", subset="main", split="train_sft[:50%]").counts["rows"] == 10
    assert asked == [("some/set", "main", "train_sft")]
    with pytest.raises(DataError, match=r'no split "trian"; did you mean "train"\? \(known: test, train\)'):
        read("some/set", split="trian")
    with pytest.raises(DataError, match="could not be had from the hub: Couldn't reach 'gone/away' on the Hub"):
        read("gone/away")
    del asked[:]
    for local in ("./some/set", "../set", "/no/such", "~/no/such", "set.jsonl", "some/set.csv", "a/b/c"):
        with pytest.raises(DataError, match="does not exist"):
            read(local)
    assert asked == []


def test_laboratory_has_its_own_held_out_rows() -> None:
    world = pytest.importorskip("sparring.laboratory.world")
    train, held = world.rows(3)
    loaded = read("laboratory", seed=3, eval_limit=10_000)
    assert prompts(loaded.train) == [row["prompt"] for row in train]
    assert prompts(loaded.eval) == [row["prompt"] for row in held]
    assert not any(one.chat for one in loaded.train)
    assert loaded.fingerprint != read("laboratory", seed=4).fingerprint
    assert loaded.fingerprint == read("laboratory", seed=3, eval_limit=10_000).fingerprint


# ---------------------------------------------------------------- holding out


def key(conversation: Any) -> tuple[str, ...]:
    turns = conversation.messages[: 2 if conversation.messages[0].role == "system" else 1]
    return tuple(" ".join(turn.content.split()).casefold() for turn in turns)


def duplicated(draw: random.Random) -> list[dict[str, Any]]:
    """Rows with few prompts, many spellings, several answers and turns."""
    rows = []
    for _ in range(draw.randint(20, 120)):
        prompt = draw.choice(["  ", ""]) + f"What{draw.choice([' ', '  ', chr(10)])}is {draw.randint(0, 12)}?"
        turns = [
            {"role": "user", "content": draw.choice([str.upper, str.lower, str])(prompt)},
            {"role": "assistant", "content": f"It is {draw.randint(0, 3)}"},
        ]
        if draw.random() < 0.3:
            turns += [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes"}]
        system = [{"role": "system", "content": "Be KIND"}] if draw.random() < 0.3 else []
        rows.append({"messages": system + turns})
    return rows


def test_no_prompt_is_on_both_sides(tmp_path: Path) -> None:
    for trial in range(60):
        draw = random.Random(trial)
        rows = duplicated(draw)
        file = write_jsonl(tmp_path / "a.jsonl", rows)
        held = write_jsonl(tmp_path / "b.jsonl", duplicated(draw)[:4])
        size = draw.choice([0.05, 0.3, 0.6, 1, 3])
        limit = draw.choice([2, 1000])
        for loaded in (
            read(file, seed=trial, eval_size=size, eval_limit=limit),
            read(file, seed=trial, eval=held, eval_limit=limit),
            read(file, seed=trial, split="[:70%]", eval_split="[95%:]", eval_limit=limit),
        ):
            assert not {key(one) for one in loaded.train} & {key(one) for one in loaded.eval}
            assert loaded.train
            assert 1 <= len(loaded.eval) <= limit
            counts = dict(loaded.counts)
            assert counts.pop("rows") == sum(counts.values())
            assert counts["train"] == len(loaded.train)
            assert counts["eval"] == len(loaded.eval)


def test_what_is_held_out_does_not_depend_on_order(tmp_path: Path) -> None:
    rows = duplicated(random.Random(0))
    straight = read(write_jsonl(tmp_path / "a.jsonl", rows), eval_size=0.4, eval_limit=7)
    random.Random(1).shuffle(rows)
    shuffled = read(write_jsonl(tmp_path / "b.jsonl", rows), eval_size=0.4, eval_limit=7)

    def content(part: list[Any]) -> list[str]:
        return sorted(str(one.messages) for one in part)

    assert content(straight.eval) == content(shuffled.eval)
    assert straight.counts["over eval_limit"] > 7
    assert content(straight.train) == content(shuffled.train)
    assert straight.fingerprint != shuffled.fingerprint


def test_size_of_what_is_held_out(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", pairs(50) + pairs(50))
    assert read(file).counts["eval"] == 2 * 5
    assert read(file, eval_size=7).counts["eval"] == 2 * 7
    assert read(file, eval_size=0.001).counts["eval"] == 2
    limited = read(file, eval_size=0.5, eval_limit=9).counts  # a share never holds out more than is used
    assert (limited["eval"], limited["over eval_limit"]) == (9, 9)
    assert set(prompts(read(file, seed=0).eval)) != set(prompts(read(file, seed=1).eval))
    for size in (50, 0.999):
        with pytest.raises(DataError, match=r"holds 50 of the 50 distinct prompts of a\.jsonl .*none to train on"):
            read(file, eval_size=size)
    with pytest.raises(DataError, match=r"every training prompt of a\.jsonl .* is also in a\.jsonl"):
        read(file, eval=file)


def test_fingerprint_is_of_content_only(tmp_path: Path) -> None:
    first = read(write_jsonl(tmp_path / "a.jsonl", pairs(20)))
    again = read(write_jsonl(tmp_path / "elsewhere" / "b.jsonl", [{"id": 7, **row} for row in pairs(20)]))
    other = read(write_jsonl(tmp_path / "c.jsonl", [*pairs(19), {"prompt": "p19", "completion": "C19"}]))
    chat = read(tmp_path / "a.jsonl", render="chat")
    assert first.fingerprint == again.fingerprint
    assert len({first.fingerprint, other.fingerprint, chat.fingerprint}) == 3


def test_half_a_surrogate_is_still_text(tmp_path: Path) -> None:
    rows = [{"question": f"\ud800 {i}", "answer": "\udc00"} for i in range(3)]
    assert read(write_jsonl(tmp_path / "a.jsonl", rows)).counts["train"] == 2


# ---------------------------------------------------------------- real files


def real(name: str) -> Path:
    file = SHARED / name
    if not file.exists():
        pytest.skip(f"{name} is not in SPARRING_SHARED or the folder shared beside the checkout")
    return file


@pytest.mark.parametrize(
    ("name", "rows", "chat", "config"),
    [
        ("oasst/oa_questions.jsonl", 953, True, {}),
        ("oasst/oa_questions.jsonl", 953, True, {"columns": {"prompt": "input", "completion": "output"}}),
        ("oasst/oa_questions.jsonl", 953, True, {"columns": {"question": "input", "answer": "output"}}),
        ("oasst", 953, True, {}),
        ("gsm8k/train.jsonl", 7473, True, {}),
        ("ultrachat_slice/ultrachat.jsonl", 899, True, {}),
        ("preference_demo/dpo_en_demo.json", 299, True, {}),
        ("mcq/ARC-Easy_test.json", 2376, True, {}),
        ("tinystories/tinystories_10k.txt", 1728, False, {}),
    ],
)
def test_real_files(name: str, rows: int, chat: bool, config: dict[str, Any]) -> None:
    loaded = read(real(name), eval_limit=10_000, **config)
    assert loaded.counts["rows"] == rows == len(loaded.train) + len(loaded.eval)
    assert {one.chat for one in loaded.train} == {chat}


def test_real_turns_are_found() -> None:
    file = real("oasst/oa_questions.jsonl")
    ways = [{}, {"columns": {"prompt": "input", "completion": "output"}}]
    first, second = (read(file, **way) for way in ways)
    assert first.fingerprint == second.fingerprint
    turns = [len(one.messages) for one in first.train + first.eval]
    assert [turns.count(2), turns.count(4), turns.count(6)] == [517, 414, 22]
    assert not any("###" in text and "Assistant:" in text for text in prompts(first.train))


def test_dirty_real_file() -> None:
    file = real("pandalm/testset-v1.json")
    with pytest.raises(DataError, match=r"testset-v1\.json has the columns .* fit no format"):
        read(file)
    columns = {"output": "response1"}
    with pytest.raises(DataError, match=r"^testset-v1\.json\[row 18\]: empty answer: the assistant turn is \"\""):
        read(file, columns=columns)
    counts = read(file, columns=columns, bad_rows="skip").counts
    assert (counts["bad: empty answer"], counts["bad: wrong type"]) == (29, 4)
    assert counts["train"] + counts["eval"] == 999 - 33
