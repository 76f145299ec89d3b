"""The report: all results on one self-contained HTML page, for any browser and without a network.

The page depends on the results only, so the same results give the same page, byte for byte.
"""

from dcbench_tesla.reports.html.page import page

__all__ = ["page"]
