"""Proves inside the image that Sage is whole: one line for each part, with its time.

Runs as a session does: read-only root, any uid, no network, no capabilities. Ends with 1 and the reasons if a
part does not give its known answer. Known answers are from the literature or can be checked by hand, as said.
"""

from __future__ import annotations

import base64
import contextlib
import getpass
import os
import queue
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TMP = Path(os.environ.get("TMPDIR", "/tmp"))
KERNEL_LIMIT_S = 90.0
"""A cold Sage kernel is ready in 2-4 s alone; this is for a loaded machine."""
ASK_AGAIN_S = 2.0
"""Silence after which a starting kernel is asked again."""
PNG = b"\x89PNG\r\n\x1a\n"
MIN_PNG_BYTES = 5000
"""An empty canvas of Sage's usual size compresses to less; the plots here have 15000 and more."""


class PartError(Exception):
    """A part gave something else than its known answer."""


def expect(real: object, known: object) -> str:
    """Compare by text, as a person reads it."""
    if str(real) != str(known):
        raise PartError(f"gave {str(real)[:200]!r} instead of {str(known)[:200]!r}")
    return str(real)


def expect_png(content: bytes) -> str:
    """A PNG with something in it."""
    if not content.startswith(PNG) or len(content) < MIN_PNG_BYTES:
        raise PartError(f"no usable PNG: {len(content)} bytes that start with {content[:8]!r}")
    return f"{len(content)} bytes"


def sage(code: str) -> Any:
    """Value of the last line of ``code`` in the Sage language."""
    from sage.repl.preparse import preparse_file

    *lines, last = code.strip().splitlines()
    space = dict(GLOBALS)
    exec(preparse_file("\n".join(lines)), space)
    exec(preparse_file("_last = (" + last.strip() + ")"), space)
    return space["_last"]


GLOBALS: dict[str, Any] = {}
"""What Sage offers; every part starts from a copy."""


def part_import() -> str:
    exec("from sage.all import *", GLOBALS)
    return str(sage("sage.version.version"))


def part_preparser() -> str:
    return expect(sage("K.<a> = QuadraticField(5)\nf(x) = x^2\n(2^10, 7//2, 1/3, f(a), [1..3])"),
                  "(1024, 3, 1/3, 5, [1, 2, 3])")  # fmt: skip


def part_pari() -> str:
    # Mersenne's M67, factored by Cole in 1903.
    return expect(sage("pari(2^67-1).factor()"), "[193707721, 1; 761838257287, 1]")


def part_gp() -> str:
    return expect(sage("gp('nextprime(10^20)')"), "100000000000000000039")


def part_flint() -> str:
    expect(sage("R.<x> = ZZ[]\n(x^105-1).factor().unit()"), "1")
    # The smallest cyclotomic polynomial with a coefficient -2.
    return expect(sage("min(cyclotomic_polynomial(105).list())"), "-2")


def part_arb() -> str:
    return expect(sage("RealBallField(100).pi().overlaps(RBF(pi))"), "True")


def part_ntl() -> str:
    return expect(sage("GF(2^8,'z').modulus().is_irreducible()"), "True")


def part_linbox() -> str:
    # A Vandermonde determinant: the product of all differences.
    return expect(sage("matrix(ZZ, 5, 5, lambda i, j: (i+1)^j).det()"), "288")


def part_lll() -> str:
    return expect(sage("matrix(ZZ, [[1,0,1345],[0,1,35]]).LLL().nrows()"), "2")


def part_maxima() -> str:
    expect(sage("integrate(exp(-x^2), x, -oo, oo)"), "sqrt(pi)")
    expect(sage("sum(1/x^2, x, 1, oo)"), "1/6*pi^2")
    return expect(sage("maxima('factor(x^4-1)').sage()"), "(x^2 + 1)*(x + 1)*(x - 1)")


def part_sympy() -> str:
    return expect(sage("integrate(1/(1+x^2), x, algorithm='sympy')"), "arctan(x)")


def part_giac() -> str:
    return expect(sage("integrate(1/(1+x^2), x, algorithm='giac')"), "arctan(x)")


def part_singular() -> str:
    expect(sage("R.<x,y> = QQ[]\n(R*[x^2+y, y^2-1]).groebner_basis()"), "[x^2 + y, y^2 - 1]")
    return expect(sage("singular('2^10')"), "1024")


def part_libgap() -> str:
    # The Mathieu group M11 has order 7920.
    expect(sage("libgap.MathieuGroup(11).Order()"), "7920")
    return expect(sage("libgap.SmallGroup(60, 5).StructureDescription()"), "A5")


def part_gap() -> str:
    return expect(sage("gap('Size(SymmetricGroup(6))')"), "720")


def part_graphs() -> str:
    return expect(sage("G = graphs.PetersenGraph()\n(G.chromatic_number(), G.is_planar(), "
                       "G.automorphism_group().order(), len(list(graphs.nauty_geng('5 -c'))))"),
                  "(3, False, 120, 21)")  # fmt: skip


def part_elliptic() -> str:
    # 389a is the smallest conductor of rank 2; 5077a that of rank 3, here without the database.
    expect(sage("EllipticCurve('389a').rank()"), "2")
    expect(sage("EllipticCurve('11a').modular_degree()"), "1")
    return expect(sage("EllipticCurve([0,0,1,-7,6]).rank()"), "3")


def part_number_field() -> str:
    return expect(sage("K.<a> = NumberField(x^2+23)\n(K.class_number(), K.discriminant(), K.is_galois())"),
                  "(3, -23, True)")  # fmt: skip


def part_modular() -> str:
    return expect(sage("CuspForms(11, 2).dimension()"), "1")


def part_combinat() -> str:
    return expect(sage("(number_of_partitions(100), SymmetricFunctions(QQ).s()([2,1]).expand(2))"),
                  "(190569292, x0^2*x1 + x0*x1^2)")  # fmt: skip


def part_polyhedra() -> str:
    return expect(sage("P = polytopes.cube()\n(P.volume(), P.ehrhart_polynomial(), len(P.integral_points()))"),
                  "(8, 8*t^3 + 12*t^2 + 6*t + 1, 27)")  # fmt: skip


def part_linear_programs() -> str:
    code = ("p = MixedIntegerLinearProgram()\nv = p.new_variable(integer=True, nonnegative=True)\n"
            "p.add_constraint(2*v[0] + 3*v[1] <= 7)\np.set_objective(v[0] + v[1])\np.solve()")  # fmt: skip
    return expect(sage(code), "3.0")


def part_topology() -> str:
    return expect(sage("simplicial_complexes.KleinBottle().homology()[1]"), "Z x C2")


def part_numpy() -> str:
    return expect(
        sage("import numpy, scipy.special, pandas\nfloat(scipy.special.gamma(5.0r))"), "24.0"
    )


def part_latex() -> str:
    return expect(sage("latex(integrate(x^2, x))"), r"\frac{1}{3} \, x^{3}")


def part_plot() -> str:
    path = TMP / "smoke.png"
    sage(f"plot(sin(x), (x, 0, 6)).save({str(path)!r})")
    return expect_png(path.read_bytes())


def part_plot3d_html() -> str:
    """A page that shows its scene without a network: the library is in the image and can be put into the page."""
    from sage.features.threejs import Threejs

    library = Path(Threejs().absolute_filename()).read_text(encoding="utf-8")
    page = sage("sphere()._rich_repr_threejs(online=True)").html.get_str()
    whole = re.sub(
        r'<script src="https://[^"]*three[^"]*"></script>',
        lambda _: f"<script>{library}</script>",
        page,
    )
    if "REVISION" not in library or "new THREE.Scene" not in whole or "<script src=" in whole:
        raise PartError("the page needs something that is not in the image")
    return f"{len(whole)} characters, three.js {Threejs().required_version()} among them"


def part_plot3d_png() -> str:
    path = TMP / "smoke3d.png"
    sage(f"plot3d(lambda u, v: u*v, (-1,1), (-1,1)).save({str(path)!r})")
    return expect_png(path.read_bytes())


def part_animation() -> str:
    path = TMP / "smoke-a.png"
    sage(f"animate([plot(sin, (0, k)) for k in [1, 2]]).apng(savefile={str(path)!r})")
    return expect_png(path.read_bytes())


def part_matplotlib() -> str:
    path = TMP / "smoke-m.png"
    import matplotlib.pyplot as plt

    figure = plt.figure()
    figure.gca().plot([1, 4, 9])
    figure.savefig(path)
    plt.close(figure)
    return expect_png(path.read_bytes())


class Kernel:
    """Sage's own kernel as a process, spoken to over ipc as the broker does."""

    def __init__(self) -> None:
        from jupyter_client.blocking import BlockingKernelClient
        from jupyter_client.connect import write_connection_file

        self.file, _ = write_connection_file(
            str(TMP / "smoke.json"), transport="ipc", ip=str(TMP / "smoke-k")
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sage.repl.ipython_kernel", "-f", self.file],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        self.client = BlockingKernelClient(connection_file=self.file)
        self.client.load_connection_file()
        self.client.start_channels()
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        """Ask until a reply and something on iopub came.

        Not ``wait_for_ready``: it takes a heart that does not beat yet, on a loaded machine, for a death.
        """
        deadline = time.monotonic() + KERNEL_LIMIT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise PartError(f"the kernel ended with code {self.process.returncode}")
            with contextlib.suppress(queue.Empty):
                self.client.kernel_info()
                self.client.get_shell_msg(timeout=ASK_AGAIN_S)
                self.client.get_iopub_msg(timeout=ASK_AGAIN_S)
                return
        raise PartError(f"the kernel was not ready after {KERNEL_LIMIT_S:.0f} s")

    def run(self, code: str) -> list[dict[str, Any]]:
        """Run a cell; return its iopub messages, comms included."""
        messages: list[dict[str, Any]] = []
        reply = self.client.execute_interactive(
            code, timeout=KERNEL_LIMIT_S, output_hook=messages.append, allow_stdin=False
        )
        if reply["content"]["status"] != "ok":
            raise PartError(f"the cell failed: {reply['content'].get('evalue')}")
        return messages

    def stop(self) -> None:
        self.client.stop_channels()
        self.process.kill()
        self.process.wait()


KERNEL: list[Kernel] = []


def part_kernel() -> str:
    KERNEL.append(Kernel())
    (result,) = [m for m in KERNEL[0].run("factor(2^64-1)") if m["msg_type"] == "execute_result"]
    return expect(
        result["content"]["data"]["text/plain"], "3 * 5 * 17 * 257 * 641 * 65537 * 6700417"
    )


def part_kernel_plot() -> str:
    shown = [
        m for m in KERNEL[0].run("plot(x^2, (x, 0, 1)).show()") if m["msg_type"] == "display_data"
    ]
    return expect_png(base64.b64decode(shown[0]["content"]["data"]["image/png"]))


def part_kernel_plot3d() -> str:
    shown = [m for m in KERNEL[0].run("sphere()") if "data" in m["content"]]
    page = shown[0]["content"]["data"]["text/html"]
    if "three" not in page:
        raise PartError("no three.js in the page")
    return f"{len(page)} characters"


def part_interact() -> str:
    code = "@interact\ndef _(n=slider(1, 1000, 1, default=360), flag=checkbox(True)):\n    print(factor(n))"
    messages = KERNEL[0].run(code)
    widgets = [m for m in messages if m["msg_type"] == "comm_open"]
    if len(widgets) < 2:
        raise PartError(f"{len(widgets)} widgets were opened")
    text = "".join(m["content"].get("text", "") for m in messages if m["msg_type"] == "stream")
    expect(text.strip(), "2^3 * 3^2 * 5")
    return f"{len(widgets)} widget models"


def part_surroundings() -> str:
    """What must not be there, and what must be possible."""
    for tool in ("gcc", "cc", "g++", "clang", "ld", "as", "pip", "pip3"):
        if shutil.which(tool):
            raise PartError(f"{tool} is in the image")
    for place in (TMP, Path.home()):
        (place / "smoke-writable").write_text("")
    return f"uid {os.getuid()}, user {getpass.getuser()}, Python {sys.version.split()[0]}"


def main() -> int:
    """Run every part in the order of this file."""
    parts: list[Callable[[], str]] = [
        v for k, v in list(globals().items()) if k.startswith("part_")
    ]
    failed: list[str] = []
    begun = time.monotonic()
    for part in parts:
        name = part.__name__.removeprefix("part_").replace("_", " ")
        started = time.monotonic()
        try:
            said, outcome = part(), "ok  "
        except Exception as error:  # noqa: BLE001 - every part is reported, whatever it raises
            said, outcome = f"{type(error).__name__}: {error}", "FAIL"
            failed.append(f"{name}: {said}")
        print(
            f"{outcome} {time.monotonic() - started:6.2f} s  {name}: {said}".replace("\n", " ")[
                :200
            ],
            flush=True,
        )
    for kernel in KERNEL:
        kernel.stop()
    print(
        f"{len(parts) - len(failed)} of {len(parts)} parts work, {time.monotonic() - begun:.1f} s",
        flush=True,
    )
    for reason in failed:
        print(f"reason: {reason}"[:1000], file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
