"""Checkpoints of a Sage kernel: written beside the next cells, restored into the next kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.docker.keeper_harness import MIB, SAGE, Kept, kept, until
from tests.sage.namespace import EIGHTEEN

pytestmark = [pytest.mark.docker, pytest.mark.sage]

LIMITS: dict[str, Any] = {"keep": 3, "time_limit_s": 8.0, "memory_limit_bytes": 256 * MIB}
"""Two seconds for a variable."""

NOTHING_TO_DO: dict[str, Any] = {"error": "", "settled": True, "pending": False}


@pytest.fixture(scope="module")
def shared(sage_image: str) -> Iterator[Kept]:
    """One container for all tests, in order."""
    with kept(sage_image, crash_limit=100, checkpoint=LIMITS, **SAGE) as session:
        session.await_status(state="running")
        yield session


@pytest.fixture
def session(shared: Kept) -> Kept:
    """The shared container with a fresh kernel and no checkpoints."""
    shared.ask_restore("none")
    shared.replace()
    # It saves its own, empty state in place of the one that was left.
    until(lambda: shared.state()["settled"], what="the checkpoint of an empty state")
    shared.forget_checkpoints()
    shared.ask_restore()
    return shared


def reasons(report: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["reason"] for entry in report["missing"]}


def settle(session: Kept) -> dict[str, Any]:
    """The newest manifest, once everything is saved."""
    until(lambda: session.state()["settled"], what=f"a checkpoint; {session.state()}")
    return session.manifests()[-1]


def reborn(session: Kept) -> dict[str, Any]:
    """Save, kill, restore; what is said of it."""
    settle(session)
    session.replace()
    return session.restored()


PROBE = """
def described():
    yield I.groebner_basis(), a^3, E.torsion_order(), M.rank(), hash(tuple(MG.list())), MG.parent()
    yield G.order(), G.canonical_label().graph6_string(), expression.subs(y=0), f(3), f.parent()
    yield point.norm(), adding(1), array.sum(), frame.to_csv(), padic, series, series.parent()
    yield group.order(), group.gens(), str(picture), picture.get_minmax_data()
print(list(described()))
"""


def test_the_namespace_of_the_design_survives(session: Kept) -> None:
    assert session.run(EIGHTEEN).status == "ok"
    manifest = settle(session)
    assert manifest["missing"] == []
    described = session.run(PROBE)
    assert described.status == "ok", described
    session.replace()
    report = session.restored()
    assert (report["missing"], report["error"], report["number"]) == ([], "", manifest["number"])
    assert session.run(PROBE).out == described.out
    session.run("factor_of_scaled = 100")
    assert session.run("scaled(2), point.norm(), adding(1)").text == "(200, 400, 101)"
    assert session.run("u.parent() is R, q.parent() is S, a.parent() is K").text == (
        "(True, True, True)"
    )


def test_sharing_between_variables_is_kept(session: Kept) -> None:
    session.run("a = [1, [2]]; b = a; c = {'inner': a[1]}; d = (a, c)")
    session.run("import numpy as np; m = np.zeros(2000000); n = [m]; view = m[:3]")
    reborn(session)
    assert session.run("a is b, c['inner'] is a[1], d[0] is a, n[0] is m").text == (
        "(True, True, True, True)"
    )
    assert session.run("m[0] = 7; bool(n[0][0] == 7), m.flags.writeable").text == "(True, True)"


def test_closures_share_their_variables_after_a_restore(session: Kept) -> None:
    session.run(
        "def counter():\n"
        "    n = 0\n"
        "    def up():\n"
        "        nonlocal n\n"
        "        n += 1\n"
        "        return n\n"
        "    return up, lambda: n\n"
        "up, look = counter(); up()\n"
        "def fib(k): return k if k < 2 else fib(k - 1) + fib(k - 2)\n"
        "class Base:\n"
        "    @cached_method\n"
        "    def twice(self): return self.n * 2\n"
        "class Derived(Base):\n"
        "    def __init__(self): super().__init__(); self.n = 4\n"
        "    def twice_again(self): return super().twice() * 2\n"
        "thing = Derived(); others = {thing: Derived}\n"
        "@cached_function\n"
        "def cached(k): return k + 1\n"
        "bound = thing.twice_again\n"
    )
    assert reborn(session)["missing"] == []
    answer = session.run(
        "up(), look(), fib(10), thing.twice_again(), type(thing) is Derived, others[thing] is"
        " Derived, isinstance(thing, Base), cached(2), bound(), bound.__self__ is thing"
    )
    assert answer.text == "(2, 2, 55, 16, True, True, True, 3, 16, True)"
    source = session.run("import inspect; print(inspect.getsource(Derived.twice_again))").out
    assert "return super().twice() * " in source


SAGES_OWN_FORGET = """
var('y t')
g(t, y) = t + y
pieces = piecewise([((0, 1), y), ((1, 2), y^2)])
vectors = [vector([g, g]), vector([y, t]), vector(QQ, [1, 2])]
vectors[2].set_immutable()
solutions = solve(y^2 - 2, y)
zero_at_0 = function('zero_at_0', nargs=1, eval_func=lambda self, x: 42 if x == 0 else None)
applied = zero_at_0(y)
from_maxima = maxima_calculus('x + 1')
import functools
@functools.lru_cache
def remembered(n): return n
lazy = Singular
ring_class = type(QQ['z'])
cube = polytopes.cube(); corners = cube.vertices()
"""


def test_what_sages_own_pickling_forgets_is_kept(session: Kept) -> None:
    show = (
        "print(g.parent(), g(1, 2), pieces(3/2), [type(v).__mro__[:2] for v in vectors],"
        " vectors[2].is_immutable(), solutions, applied.subs(y=0), from_maxima, remembered(3),"
        " lazy, ring_class is type(QQ['z']), cube.volume(), sorted(map(list, corners)))"
    )
    assert session.run(SAGES_OWN_FORGET).status == "ok"
    before = session.run(show)
    assert before.status == "ok", before
    assert reborn(session)["missing"] == []
    assert session.run(show).out == before.out


def test_what_cannot_be_saved_is_named_with_its_reason(session: Kept) -> None:
    session.run("kept = 1; generator = (i for i in range(3)); handle = open('/etc/hostname')")
    session.run("import threading; lock = threading.Lock(); thread_list = [lock]")
    session.run("value = gp(5); more = [gp(6)]; own = Gp(); own('1'); alias = globals()")
    report = reborn(session)
    found = reasons(report)
    assert {
        "generator": "cannot pickle 'generator' object",
        "handle": "a file handle (TextIOWrapper)",
        "lock": "cannot pickle '_thread.lock' object",
        "thread_list": "cannot pickle '_thread.lock' object",
        "value": "its value lives in the running pari process",
        "more": "its value lives in the running pari process",
        "own": "its state is that of the running pari process",
        "gp": "what its running process holds; it will start anew",
    }.items() <= found.items(), found
    types = {entry["name"]: entry["type"] for entry in report["missing"]}
    assert types["generator"] == "generator"
    assert session.run("kept, alias is globals(), threading.__name__").text == (
        "(1, True, 'threading')"
    )


def test_interfaces_of_the_running_kernel_are_not_disturbed(session: Kept) -> None:
    session.run("g = gp('a = 41'); h = maxima('b: 1'); s = singular(5)")
    settle(session)
    assert session.run("gp('a + 1'), maxima('b + 1'), s + 1").text == "(42, 2, 6)"


def test_settings_survive(session: Kept) -> None:
    session.run("assume(x > 0); forget(); var('n'); assume(n, 'integer'); assume(x > 1)")
    session.run("import numpy as np; np.set_printoptions(precision=3); proof.arithmetic(False)")
    session.run(
        "import os, sys; os.makedirs('/files/inner', exist_ok=True); os.chdir('/files/inner')"
    )
    session.run("open('own_module.py', 'w').write('answer = 42'); import own_module; del ZZ")
    session.run("os.environ['OWN'] = 'yes'; sys.path.append('/files')")
    session.run("%display latex")
    session.run("preparser(False)")
    assert reborn(session)["missing"] == []
    answer = session.run("print(3^2, assumptions(), sin(n*pi), bool(x > 0), os.getcwd())")
    assert answer.out == "1 [n is integer, x > 1] 0 True /files/inner\n"
    answer = session.run(
        "print(own_module.answer, np.get_printoptions()['precision'], proof.arithmetic(),"
        " os.environ['OWN'], sys.path[-1], 'ZZ' in globals())"
    )
    assert answer.out == "42 3 False yes /files False\n"
    session.run("preparser(True)")
    assert "\\frac" in session.rich("x/2")["text/latex"]


DRAW = (
    "import random as pr, numpy.random\n"
    "def draw(): return [pr.random(), numpy.random.random(), ZZ.random_element(10^30), random(),"
    " pari('random(10^9)'), libgap.eval('[Random(GlobalMersenneTwister, 1, 10^9),"
    " Random(GlobalRandomSource, 1, 10^9)]'), SymmetricGroup(30).random_element()]\n"
)


@pytest.mark.parametrize("before", ["draw()", "set_random_seed(5)", "set_random_seed(5); draw()"])
def test_random_numbers_go_on_as_if_nothing_had_happened(session: Kept, before: str) -> None:
    session.run(DRAW)
    session.run(before)
    settle(session)
    undisturbed = session.run("print(draw(), draw())", limit_s=60).out
    session.replace_at_checkpoint(3)
    assert session.restored()["missing"] == []
    assert session.run("print(draw(), draw())").out == undisturbed


def test_nothing_of_it_is_seen_by_the_user(session: Kept) -> None:
    session.run("import os, gc; before = set(globals()); a = 5")
    session.run("a + 1")
    settle(session)
    assert session.run("print(_, __ == '', _2, Out, len(In))").out == "6 True 6 {2: 6} 4\n"
    seen = session.run("print(sorted(set(globals()) - before))").out
    assert seen == "['_2', '_i2', '_i3', '_i4', 'a', 'before']\n"
    for _ in range(20):
        answer = session.run("a += 1\ntry: os.wait()\nexcept ChildProcessError: print('none')")
        assert answer.out == "none\n"


def test_cells_that_change_nothing_are_not_saved(session: Kept) -> None:
    session.run("a = 1")
    first = settle(session)["number"]
    for code in ("a", "a + 1", "2^10", "print(a, 1.5)", "", "# nothing"):
        session.run(code)
    assert session.state() == {"number": first, **NOTHING_TO_DO}
    assert [m["number"] for m in session.manifests()] == [first]
    session.run("factor(a)")
    assert settle(session)["number"] == first + 1


def test_requests_outside_of_the_history_are_not_saved(session: Kept) -> None:
    session.run("a = 1")
    number = settle(session)["number"]
    client = session.client()
    session.collect(client.execute("a = 2", store_history=False))
    client.execute("a = 3", silent=True)
    assert session.run("a").text == "3"
    assert session.state() == {"number": number, **NOTHING_TO_DO}


def test_a_checkpoint_can_be_asked_for(session: Kept) -> None:
    session.run("1 + 1")
    assert session.state(write=True)["settled"] is False
    assert settle(session)["names"] == []


def test_variables_from_before_an_endless_cell_are_back(session: Kept) -> None:
    session.run("a = 42; b = matrix(QQ, 2)")
    running = session.send("print('go', flush=True)\nwhile True: pass")
    session.await_output("go")
    del running
    session.checkpoint_of(1)  # written beside the running cell
    session.replace()
    assert session.restored()["names"] == 2
    assert session.run("a, b.nrows()").text == "(42, 2)"


def test_the_last_state_is_saved_however_fast_the_cells_come(session: Kept) -> None:
    sent = [session.send(f"a = {n}; b = list(range(a))") for n in range(40)]
    for each in sent:
        session.collect(each)
    assert settle(session)["cell"] == 40
    assert len(session.manifests()) <= LIMITS["keep"]
    assert reborn(session)["names"] == 2
    assert session.run("a, len(b)").text == "(39, 39)"


HARMFUL = """
import os, time, ctypes
class Loops:
    def __reduce__(self):
        while True: pass
class Sleeps:
    def __reduce__(self): time.sleep(1000)
class Stubborn:
    def __reduce__(self):
        while True:
            try: time.sleep(1000)
            except BaseException: pass
class Eats:
    def __reduce__(self): return list, ([bytes(2**30)],)
class Exits:
    def __reduce__(self): os._exit(0)
class Crashes:
    def __reduce__(self): ctypes.string_at(int(1))
class Kills:
    def __reduce__(self): os.kill(os.getpid(), 9)
class Raises:
    def __reduce__(self): raise ValueError('no\\nway')
class Prints:
    def __reduce__(self): print('hello'); os.system('echo hello'); return int, ()
"""


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("Loops", "saving it takes too long"),
        ("Stubborn", "saving it takes too long"),
        ("Eats", "it needs more memory than there is"),
        ("Exits", "saving it ends the process (exit code 0)"),
        ("Crashes", "saving it ends in a crash (signal 11)"),
        ("Kills", "saving it took more memory than there is"),
        ("Raises", "ValueError: no way"),
    ],
)
def test_an_object_that_cannot_be_saved_in_peace_is_left_out(
    session: Kept, kind: str, reason: str
) -> None:
    session.run(HARMFUL)
    session.run(f"shared = [1]; before = shared; bad = [shared, {kind}()]; after = shared")
    manifest = session.checkpoint_of(2)
    assert reasons(manifest) == {"bad": reason}
    assert session.run("1 + 1").text == "2"
    session.replace()
    assert reasons(session.restored()) == {"bad": reason}
    assert session.run("before is after, shared").text == "(True, [1])"
    assert session.status()["last_exit"]["requested"] is True


def test_a_variable_that_did_harm_does_not_delay_the_next_checkpoints(session: Kept) -> None:
    session.run(HARMFUL)
    session.run("bad = [Loops()]")
    assert settle(session)["seconds"] > 1
    session.run("a = 1")
    manifest = settle(session)
    assert manifest["seconds"] < 1
    assert reasons(manifest) == {"bad": "saving it takes too long"}
    session.run("bad = [2]")
    assert settle(session)["missing"] == []


def test_objects_can_print_nothing_while_they_are_saved(session: Kept) -> None:
    session.run(HARMFUL)
    assert session.run("loud = Prints()").out == ""
    settle(session)
    assert session.run("print('only this')").out == "only this\n"


def test_what_does_not_fit_is_left_out(sage_image: str) -> None:
    small = {**LIMITS, "limit_bytes": 4_000_000}
    with kept(sage_image, checkpoint=small, **SAGE) as session:
        session.await_status(state="running")
        session.run("import numpy as np; a = 1; big = np.zeros(10^6); text = 'x' * 5000000; b = 2")
        manifest = settle(session)
        assert set(reasons(manifest)) == {"big", "text"}
        assert "larger than 4 MB" in reasons(manifest)["big"]
        assert set(manifest["names"]) == {"np", "a", "b"}


def test_a_folder_that_cannot_be_written_is_told(session: Kept) -> None:
    session.run("import os; os.chmod('/checkpoint', 0o500); a = 1")
    until(lambda: session.state()["error"])
    assert session.state() == {
        "number": 0,
        "error": "/checkpoint: Permission denied",
        "settled": False,
        "pending": False,
    }
    session.run("os.chmod('/checkpoint', 0o700)")
    session.run("1 + 1")
    assert settle(session)["names"] == ["a"]


def test_out_of_memory_of_the_writer_is_not_the_kernels(sage_image: str) -> None:
    limits = {**LIMITS, "memory_limit_bytes": 4096 * MIB, "time_limit_s": 80.0}
    with kept(sage_image, memory=900 * MIB, checkpoint=limits, **SAGE) as session:
        session.await_status(state="running")
        session.run(
            "class Eats:\n"
            "    def __reduce__(self):\n"
            "        eaten = []\n"
            "        while True: eaten.append(bytearray(b'x' * 2^24))\n"
            "a = 1; bad = Eats()"
        )
        manifest = session.checkpoint_of(1)
        assert reasons(manifest) == {"bad": "saving it took more memory than there is"}
        assert session.run("a").text == "1"
        status = session.status()
        assert (status["generation"], status["last_exit"]) == (1, None)


def test_a_damaged_checkpoint_gives_way_to_the_older_one(session: Kept) -> None:
    for value in (1, 2, 3):
        session.run(f"a = {value}; b = 'text'")
        settle(session)
    newest, middle, oldest = sorted((m["number"] for m in session.manifests()), reverse=True)
    data = session.checkpoints / str(newest) / "data.pickle"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    (session.checkpoints / str(middle) / "manifest.json").write_text("{")
    session.replace()
    report = session.restored()
    assert report["number"] == oldest
    assert f"checkpoint {newest} cannot be used" in report["error"]
    assert f"checkpoint {middle} cannot be used" in report["error"]
    assert session.run("a").text == "1"


REVIVING = """
import os, time, ctypes
class Exits:
    def __setstate__(self, state): os._exit(3)
class Crashes:
    def __setstate__(self, state): ctypes.string_at(int(1))
class Loops:
    def __setstate__(self, state):
        while True: pass
class Raises:
    def __setstate__(self, state): raise ValueError('no way back')
"""


@pytest.mark.parametrize(
    ("kind", "reason", "starts"),
    [
        ("Exits", "a kernel has ended while it was being restored", 2),
        ("Crashes", "a kernel has ended while it was being restored", 2),
        ("Raises", "ValueError: no way back", 1),
    ],
)
def test_an_object_that_cannot_be_restored_is_left_out(
    session: Kept, kind: str, reason: str, starts: int
) -> None:
    session.run(REVIVING)
    session.run(
        f"shared = [1]; before = shared; bad = {kind}(); bad.state = shared; also = [bad];"
        " after = shared"
    )
    settle(session)
    generation = session.status()["generation"]
    session.replace()
    session.await_status(generation=generation + starts, state="running")
    report = session.restored()
    assert reasons(report) == dict.fromkeys(["bad", "also"], f"could not be restored: {reason}")
    assert session.run("before is after, shared, 'bad' in globals()").text == "(True, [1], False)"
    # What was learnt is remembered.
    session.replace()
    session.await_status(generation=generation + starts + 1, state="running")
    assert reasons(session.restored()).keys() == {"bad", "also"}
    assert session.run("before is after").text == "True"


def test_an_object_that_hangs_while_it_is_restored_is_left_out(sage_image: str) -> None:
    limits = {**LIMITS, "restore_limit_s": 4.0}
    with kept(sage_image, checkpoint=limits, **SAGE) as session:
        session.await_status(state="running")
        session.ask_restore()
        session.run(REVIVING)
        session.run("a = 1; bad = Loops(); bad.state = 1")
        report = reborn(session)
        assert reasons(report) == {"bad": "could not be restored: restoring it takes too long"}
        assert session.run("a").text == "1"


def test_without_an_order_nothing_is_restored(session: Kept) -> None:
    session.run("a = 1")
    settle(session)
    session.ask_restore("none")
    session.replace()
    report = session.restored()
    assert (report["number"], report["names"], report["error"]) == (None, 0, "")
    assert session.run("a").ename == "NameError"


def test_deep_and_cyclic_structures_survive(session: Kept) -> None:
    session.run("deep = []\nfor _ in range(400): deep = [deep]")
    session.run("cycle = [1]; cycle.append(cycle); d = {'self': None}; d['self'] = d")
    session.run("deeper = []\nfor _ in range(100000): deeper = [deeper]")
    report = reborn(session)
    assert reasons(report) == {"deeper": "it is nested too deeply"}
    assert session.run("cycle[1] is cycle, d['self'] is d, len(deep)").text == "(True, True, 1)"
