"""Data: recordings and where they come from, forecasting pairs, and streams of chunks in order."""

from tbptt.data.bach import Chorales as Chorales
from tbptt.data.bach import chorales as chorales
from tbptt.data.fetch import DataDamaged as DataDamaged
from tbptt.data.fetch import DataUnavailable as DataUnavailable
from tbptt.data.fetch import fetch as fetch
from tbptt.data.fetch import read_member as read_member
from tbptt.data.fetch import read_members as read_members
from tbptt.data.forecast import Scaling as Scaling
from tbptt.data.forecast import forecast_pairs as forecast_pairs
from tbptt.data.forecast import standardise as standardise
from tbptt.data.mackey_glass import mackey_glass as mackey_glass
from tbptt.data.packing import pack as pack
from tbptt.data.plays import Plays as Plays
from tbptt.data.plays import shakespeare as shakespeare
from tbptt.data.recordings import ppg as ppg
from tbptt.data.series import Recording as Recording
from tbptt.data.series import load_series as load_series
from tbptt.data.streams import Chunk as Chunk
from tbptt.data.streams import DiscontinuousFeed as DiscontinuousFeed
from tbptt.data.streams import chunks as chunks
from tbptt.data.streams import continuous as continuous
from tbptt.data.streams import lanes as lanes
from tbptt.data.tasks import copy_stream as copy_stream
from tbptt.data.text import Alphabet as Alphabet
from tbptt.data.text import alphabet_of as alphabet_of
from tbptt.data.text import next_symbol_lanes as next_symbol_lanes
