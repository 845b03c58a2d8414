"""Generate synthetic sequence tasks, as pure functions of a random key."""

from tbptt.data.tasks.adding import adding as adding
from tbptt.data.tasks.copying import copy_baseline as copy_baseline
from tbptt.data.tasks.copying import copy_memory as copy_memory
from tbptt.data.tasks.copying import copy_stream as copy_stream
from tbptt.data.tasks.reber import REBER_SYMBOLS as REBER_SYMBOLS
from tbptt.data.tasks.reber import continual_reber as continual_reber
from tbptt.data.tasks.reber import reber_recalls as reber_recalls
from tbptt.data.tasks.temporal_order import ORDER_SYMBOLS as ORDER_SYMBOLS
from tbptt.data.tasks.temporal_order import temporal_order as temporal_order
