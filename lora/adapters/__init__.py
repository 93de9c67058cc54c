"""What a trained adapter is, and what can be done with it.

| module | what it holds |
| --- | --- |
| `adapter` | the trained tensors, what they mean and where they came from |
| `base` | the pretrained weights beneath: which they are, and whether they are those of an adapter |
| `head` | a model's head, exchanged whole |
| `merge` | `merge`, `unmerge`, `swap`, `remove`: LoRA folded into the weights, and out again |
| `files` | an adapter as a folder that explains itself |
| `modes` | changes that last, made in whatever mode of torch |
| `place` | an adapter put on a model, after every check |
| `many` | several adapters in one batch |
| `location` | the folder or hub id that a base is loaded from |
| `peft_folder`, `loralib_file` | other libraries' files |
"""
