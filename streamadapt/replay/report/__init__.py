"""What replays showed: a page, a picture, tables of numbers, and conditions to hold them to."""

from streamadapt.replay.report.conditions import Condition as Condition
from streamadapt.replay.report.page import render_report as render_report
from streamadapt.replay.report.picture import render_picture as render_picture
from streamadapt.replay.report.pool import Pool as Pool
from streamadapt.replay.report.pool import Rank as Rank
from streamadapt.replay.report.pool import pool as pool
from streamadapt.replay.report.summary import headline as headline
from streamadapt.replay.report.summary import to_csv as to_csv
from streamadapt.replay.report.summary import to_dict as to_dict

__all__ = [
    "Condition",
    "Pool",
    "Rank",
    "headline",
    "pool",
    "render_picture",
    "render_report",
    "to_csv",
    "to_dict",
]
