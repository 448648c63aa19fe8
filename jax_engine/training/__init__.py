"""How the embedded model is made: a Llama of about two million parameters, trained on short stories.

    config      what the model is, and how it is trained
    data        stories, tokenizer, documents, rows
    llama       the model, in flax.nnx
    optimizer   Muon and Adam, and their rates over time
    loop        the steps; checkpoints, held-out loss, a log
    state       what a checkpoint holds
    export      a directory that transformers loads
    judges      held-out loss and the suffix check

`python -m gnomon.jax_engine.training` runs it. Sampling, caching and serving are the engine's.
"""
