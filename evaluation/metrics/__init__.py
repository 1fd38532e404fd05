"""The measures of this room as modules of Hugging Face's `evaluate`, one a file, for whoever works with that package.

    from evaluation.metrics.bleu import Bleu
    Bleu().compute(predictions=["the cat sat"], references=[["the cat sat down"]])
    evaluate.load("evaluation/metrics/bleu.py")
    evaluate.combine([Bleu(), Rouge()])

Nothing is downloaded, and nothing else here imports them, because `evaluate` alone takes seconds to load. With
`keep_in_memory=True` no file is written. `evaluate.combine` hands every module all options, so each ignores those that
are not its own.
"""
