"""What the pipeline does: one module a stage, and the packages they are made of."""

import gc
import os
import sys

# Before torch is imported, or it is too late: how long an OpenMP thread that waits spins before it
# sleeps. The library's own default makes a two-thread step several times slower where another
# process holds a core; a thousand turns cost an idle machine nothing
# (infra/decisions/threads-that-wait.md).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# A stage is starting (`python -m tasks.…`): what torch and transformers create while they are
# imported lives as long as the process, and looking through it for garbage costs a second.
# `tasks.stage.run` switches the collector on again.
if sys.argv[:1] == ["-m"]:
    gc.disable()
