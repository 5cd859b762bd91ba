"""A plugin for vLLM. The directory is put on the PYTHONPATH of the vLLM process, where ``entry_points.txt`` of the
``dist-info`` beside this file names it in the group ``vllm.general_plugins``: so it need not be installed there."""
