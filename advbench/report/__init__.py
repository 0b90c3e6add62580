"""From records to tables: results, leaderboard, affinity and retention, as CSV and Markdown."""

from advbench.report.tables import Report as Report
from advbench.report.tables import collect as collect
