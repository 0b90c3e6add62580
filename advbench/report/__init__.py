"""Reports: tables, figures and a page from records."""

from advbench.report.tables import Report as Report
from advbench.report.tables import collect as collect
