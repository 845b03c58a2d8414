"""Loss functions of the form that every estimator takes, `LossFn`."""

from tbptt.losses.dropout import SeededTargets as SeededTargets
from tbptt.losses.dropout import dropout_loss as dropout_loss
from tbptt.losses.dropout import with_seeds as with_seeds
from tbptt.losses.regularizers import norm_preserving_loss as norm_preserving_loss
from tbptt.losses.sequence import SequenceParams as SequenceParams
from tbptt.losses.sequence import init_params as init_params
from tbptt.losses.sequence import memory_plan as memory_plan
from tbptt.losses.sequence import predict as predict
from tbptt.losses.sequence import sequence_loss as sequence_loss
from tbptt.losses.sequence import squared_error as squared_error
