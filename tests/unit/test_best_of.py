"""Best of n from the command line and in a chat: who chooses, from what, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.talks import run_on, save_talker, sums
from tests.unit.test_cli import call

from sparring.best_of import chooser_settings
from sparring.browse import answer
from sparring.chatting.opening import Wishes, open_chat
from sparring.configfile import build_config
from sparring.errors import InputError, RewardError

pytestmark = pytest.mark.usefixtures("undrawn")

PATTERN = "^[^a]*$"  # of four answers one at least, and not the first, where tests say so


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs: `talk` has a scorer, `mute` has none."""
    place = tmp_path_factory.mktemp("place")
    save_talker(place)
    for name, scorer in (("talk", {"name": "regex", "pattern": PATTERN}), ("mute", None)):
        run_on(place, name, sums(), scorer=scorer, sft={"batch_size": 5}, selfplay={"iterations": 0})
    return place


def test_each_answer_is_the_best_of_its_own(place: Path) -> None:
    run, told = place / "runs" / "talk", list[str]()
    every = answer(run, "1 and 2", "sft", 12, 3, 1.0, 12)
    found = answer(run, "1 and 2", "sft", 3, 3, 1.0, 12, 4, None, told.append)
    for number, chosen in enumerate(found):
        among = every[4 * number : 4 * number + 4]
        scores = [re.search(PATTERN, text) is not None for text in among]
        assert chosen == among[scores.index(max(scores))]  # the first of the highest
    assert found != every[::4]
    assert len(told) == 3
    assert told[0].startswith(f"best of 4 by regex ({PATTERN}): ")
    assert told[0].endswith("KL from the player at most 0.64 nats")


def test_a_chat_says_the_same_and_goes_on_from_it(place: Path) -> None:
    wishes = Wishes(player="sft", seed=3, max_new_tokens=12, best_of=4)
    chat, shown = open_chat("talk", place / "runs", wishes), list[str]()
    one = chat.ask("1 and 2", lambda voice: shown.append)[0]
    assert "".join(shown) == one.text
    assert one.text == answer(place / "runs" / "talk", "1 and 2", "sft", 1, 3, 1.0, 12, 4)[0]
    assert chat.voices[0].turns == [("1 and 2", one.text)]
    alone = open_chat("talk", place / "runs", Wishes(player="sft", seed=3, max_new_tokens=12))
    assert alone.ask("1 and 2", lambda voice: lambda text: None)[0].text != one.text


def test_what_cannot_choose_is_refused_before_a_model_is_loaded(place: Path) -> None:
    with pytest.raises(InputError, match=r"--best-of 2 needs a scorer .* give --scorer"):
        answer(place / "runs" / "mute", "1 and 2", "sft", 1, 0, 1.0, 4, 2)
    with pytest.raises(InputError, match="give --best-of 2 or more, or leave it out"):
        open_chat("talk", place / "runs", Wishes(scorer="runs/reward"))
    with pytest.raises(RewardError, match="is no reward model"):
        open_chat("mute", place / "runs", Wishes(best_of=2, scorer=str(place)))
    with pytest.raises(InputError, match="compares an answer with the real one"):
        chooser_settings(build_config({"scorer": "match"}), None, 2)


def test_through_the_command_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["talk", "1 and 2", "--best-of", "3", "--player", "sft", "--max-new-tokens", "8"]
    assert call("sample", *words, "--runs", str(place / "runs")) == 0
    told = capsys.readouterr()
    assert told.out == answer(place / "runs" / "talk", "1 and 2", "sft", 1, 0, 1.0, 8, 3)[0] + "\n"
    assert told.err.startswith("best of 3 by regex")
