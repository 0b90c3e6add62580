"""Plugins and their hooks, described hyperparameters, optional libraries. Imports no torch."""

from advbench.registry.hooks import FinishedTask as FinishedTask
from advbench.registry.hooks import hookimpl as hookimpl
from advbench.registry.optional import calling as calling
from advbench.registry.optional import require as require
from advbench.registry.optional import written_over as written_over
from advbench.registry.plugins import KINDS as KINDS
from advbench.registry.plugins import Entry as Entry
from advbench.registry.plugins import Kind as Kind
from advbench.registry.plugins import Registrar as Registrar
from advbench.registry.plugins import Registry as Registry
from advbench.registry.plugins import checkout_digest as checkout_digest
from advbench.registry.plugins import registry as registry
