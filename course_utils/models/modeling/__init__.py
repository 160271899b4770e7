"""What a model with missing or conditional attentions needs at run time.

``save_pruned`` and ``export_vllm`` copy these files into a checkpoint's folder, where they work without this package.
So they import nothing but torch, transformers and each other, relatively, and must stay so.
"""
