"""From a rollout to the ELBO, from the ELBO to a gradient (`ESTIMATORS`), and a search for better latents."""

from air.inference.enumerate import Enumerate
from air.inference.estimator import Estimator
from air.inference.nvil import NVIL
from air.inference.vimco import VIMCO

ESTIMATORS: dict[str, type[Estimator]] = {"nvil": NVIL, "enumerate": Enumerate, "vimco": VIMCO}
