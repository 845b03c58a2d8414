"""Recurrent cells as pure functions: one cell a file."""

from tbptt.cells.elman import Elman as Elman
from tbptt.cells.elman import ElmanCarry as ElmanCarry
from tbptt.cells.elman import ElmanParams as ElmanParams
from tbptt.cells.gru import GRU as GRU
from tbptt.cells.gru import GRUParams as GRUParams
from tbptt.cells.gru_base import GRUCarry as GRUCarry
from tbptt.cells.gru_reset_before import GRUResetBefore as GRUResetBefore
from tbptt.cells.gru_reset_before import GRUResetBeforeParams as GRUResetBeforeParams
from tbptt.cells.linear import DiagonalLinear as DiagonalLinear
from tbptt.cells.linear import DiagonalLinearCarry as DiagonalLinearCarry
from tbptt.cells.linear import DiagonalLinearParams as DiagonalLinearParams
from tbptt.cells.local import LocalGRU as LocalGRU
from tbptt.cells.local import LocalLSTM as LocalLSTM
from tbptt.cells.lstm import LSTM as LSTM
from tbptt.cells.lstm import LSTMCarry as LSTMCarry
from tbptt.cells.lstm import LSTMParams as LSTMParams
from tbptt.cells.min_gru import MinGRU as MinGRU
from tbptt.cells.min_gru import MinGRUCarry as MinGRUCarry
from tbptt.cells.min_gru import MinGRUParams as MinGRUParams
from tbptt.cells.min_lstm import MinLSTM as MinLSTM
from tbptt.cells.min_lstm import MinLSTMCarry as MinLSTMCarry
from tbptt.cells.min_lstm import MinLSTMParams as MinLSTMParams
from tbptt.cells.stack import Stack as Stack
