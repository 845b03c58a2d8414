"""Data: recordings and where they come from, forecasting pairs, and streams of chunks in order."""

from tbptt.data.digits import Digits as Digits
from tbptt.data.digits import mnist as mnist
from tbptt.data.fetch import DataDamaged as DataDamaged
from tbptt.data.fetch import DataUnavailable as DataUnavailable
from tbptt.data.fetch import fetch as fetch
from tbptt.data.fetch import read_member as read_member
from tbptt.data.forecast import Scaling as Scaling
from tbptt.data.forecast import forecast_pairs as forecast_pairs
from tbptt.data.forecast import standardise as standardise
from tbptt.data.mackey_glass import mackey_glass as mackey_glass
from tbptt.data.recordings import ecg as ecg
from tbptt.data.recordings import ppg as ppg
from tbptt.data.series import Recording as Recording
from tbptt.data.series import load_series as load_series
from tbptt.data.streams import Chunk as Chunk
from tbptt.data.streams import DiscontinuousFeed as DiscontinuousFeed
from tbptt.data.streams import chunks as chunks
from tbptt.data.streams import continuous as continuous
from tbptt.data.streams import lanes as lanes
from tbptt.data.tasks import copy_stream as copy_stream
