"""Tables and plots from the finished cells of sweeps, whichever framework ran them.

    tango results build/sweeps/motionqa --output results

samples.py finds cells in folders, cells.py reads them and makes lines of tables of them, statistics.py compares them,
tables.py makes the numbers, layout.py and plots.py show them, report.py writes the files. Published figures
(published.yaml) stand beside measured ones, in a column of their own.

verify.py counts again what was written: of cells from what their runs left (follow.py, logged.py), of tables from cells
(recount.py), against what the files say (claims.py).
"""

from tango.results.cells import ResultsError
from tango.results.layout import summaries
from tango.results.report import Report, report, write_results

__all__ = ["Report", "ResultsError", "report", "summaries", "write_results"]
