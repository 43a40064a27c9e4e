"""Run a training script that kills itself with SIGKILL: `python killed_run.py WHERE STEP <training flags>`.

WHERE says when: ``step`` (right after an optimizer step), ``file`` (half of a checkpoint's optimizer file is
written), ``manifest`` (every file but the manifest is written) or ``rename`` (everything is written, but the
folder does not have its final name yet).
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

where, step, *flags = sys.argv[1:]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


import torch  # noqa: E402

import train_qwen2_classification  # noqa: E402
from sft.training import callbacks, checkpoints  # noqa: E402

torch.set_num_threads(1)
name = f"checkpoint-{step}"

if where == "step":
    listener = callbacks.StopOnSignal.on_step_end

    def on_step_end(self, args, state, control, **keywords):
        if state.global_step == int(step):
            die()
        listener(self, args, state, control, **keywords)

    callbacks.StopOnSignal.on_step_end = on_step_end
elif where == "file":
    save = torch.save

    def half_saved(value, path, *args, **keywords):
        save(value, path, *args, **keywords)
        if f"{name}/optimizer" in str(path):
            os.truncate(path, Path(path).stat().st_size // 2)
            die()

    torch.save = half_saved
elif where == "manifest":
    write = checkpoints.write_manifest
    checkpoints.write_manifest = lambda folder, run: die() if folder.name == name else write(folder, run)
elif where == "rename":
    rename = Path.rename
    Path.rename = lambda self, target: die() if self.name == name else rename(self, target)

sys.exit(train_qwen2_classification.main(flags))
