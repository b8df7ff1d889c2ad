"""The model that segments is the one that is wanted: while it is loaded, where it cannot be, where there is none."""

import asyncio
from itertools import pairwise

import pytest

from sam3dnet.errors import CheckpointError
from sam3dnet.serving.exchange import FIRST_PAUSE_S, LONGEST_PAUSE_S, ModelExchange


class Hall:
    """Notes which models are used; runs at once."""

    def __init__(self):
        self.used, self.worker, self.released = [], self, 0

    async def run(self, _, function, *arguments, is_long):
        assert is_long
        return function(*arguments)

    def use(self, model):
        self.used.append(model)

    def release_cached(self):
        self.released += 1


class Exchange(ModelExchange):
    """One whose wanted model, loading and clock a test sets."""

    def __init__(self, folder="first"):
        self.hall, self.want, self.now, self.tried, self.load_one = Hall(), folder, 0.0, [], None
        super().__init__(self.hall, folder, lambda: self.want, self.load, lambda: "stand-in", lambda: self.now)

    def load(self, folder):
        self.tried.append(folder.name)
        if self.load_one is not None:
            self.load_one()
        return f"model {folder.name}"

    def go(self, want):
        self.want = want
        asyncio.run(self.follow())


def fail():
    raise CheckpointError("no such model")


def test_the_model_that_is_wanted_is_used_once():
    exchange = Exchange()
    for want in ("first", "second", "second", "first"):
        exchange.go(want)
    assert exchange.hall.used == ["model second", "model first"] and exchange.folder == "first"


def test_what_stands_in_for_a_model_is_used_where_there_is_none():
    exchange = Exchange()
    exchange.go(None)
    assert exchange.hall.used == ["stand-in"] and exchange.folder is None and exchange.problem is None


def test_going_back_while_the_later_model_is_loaded_leaves_the_earlier_one():
    exchange = Exchange()
    exchange.load_one = lambda: setattr(exchange, "want", "first")
    exchange.go("second")
    assert exchange.hall.used == [] and exchange.folder == "first" and exchange.tried == ["second"]


def test_going_back_further_while_a_model_is_loaded_loads_the_right_one():
    exchange = Exchange()
    exchange.load_one = lambda: setattr(exchange, "want", "third")
    exchange.go("second")
    assert exchange.hall.used == ["model third"] and exchange.folder == "third"


def test_a_model_that_cannot_be_loaded_is_tried_again_at_increasing_intervals(caplog):
    exchange = Exchange()
    exchange.load_one = fail
    tried_at = []
    for second in range(0, 3000, 2):
        exchange.now, before = float(second), len(exchange.tried)
        exchange.go("second")
        tried_at += [second] * (len(exchange.tried) - before)
    pauses = [later - earlier for earlier, later in pairwise(tried_at)]
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses == sorted(pauses) and pauses[-1] == LONGEST_PAUSE_S
    assert exchange.problem == "second cannot be loaded: no such model" and exchange.folder == "first"
    assert caplog.text.count("no such model") == 1 and exchange.hall.released == len(tried_at)
    exchange.load_one = None
    exchange.go("second")
    assert exchange.folder == "first"  # it rests
    exchange.try_again()
    exchange.go("second")
    assert exchange.folder == "second" and exchange.problem is None


def test_a_model_that_cannot_be_loaded_keeps_no_other_one_out():
    exchange = Exchange()
    exchange.load_one = fail
    exchange.go("second")
    exchange.load_one = None
    exchange.go("third")
    assert exchange.folder == "third" and exchange.problem is None


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (RuntimeError("CUDA out of memory"), "the memory does not suffice for it"),
        (ValueError("odd"), "ValueError: odd"),
    ],
)
def test_why_a_model_cannot_be_loaded(raised, said):
    exchange = Exchange()

    def fail():
        raise raised

    exchange.load_one = fail
    exchange.go("second")
    assert exchange.problem == f"second cannot be loaded: {said}"
