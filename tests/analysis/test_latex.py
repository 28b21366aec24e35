from __future__ import annotations

import subprocess
import sys


def test_latex_is_escaped_also_where_the_report_is_not_imported() -> None:
    """As ``robustsweep stats`` does, which writes tables and no report."""
    code = (
        "import sys; from orchestrator.analysis.tables.formats import escape_latex\n"
        "print(escape_latex('a^b ± \\\\x 5 % <c>'))\n"
        "assert not any(name.startswith('orchestrator.report') for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == r"a\textasciicircum{}b $\pm$ \textbackslash{}x 5 \% \textless{}c\textgreater{}"
