"""Whole runs of "fast" against "paper", and the estimate against a real run, in one process."""

import time

import snows_core as snows


def run(digits, pattern, count, **options):
    experiment, model, data = digits
    images, _, _ = data.train.sample(count, 0)
    exclude = list(experiment.exclude)
    start = time.process_time()
    result = snows.prune(model, images, pattern, exclude=exclude, progress=False, **options, effort="quick")
    seconds = time.process_time() - start
    test, labels = data.test.tensors()
    metrics = snows.evaluate(result.model, test, labels, reference=model)
    return result, seconds, metrics


def test_fast_against_paper(benchmark, digits):
    fast, seconds, metrics = benchmark.pedantic(lambda: run(digits, "1:8", 128, k=5), rounds=1)
    paper, paper_seconds, paper_metrics = run(digits, "1:8", 128, k=20, recipe="paper", cg_iterations=20)
    work = paper.report["image_products"].sum() / fast.report["image_products"].sum()
    benchmark.extra_info |= {
        "paper / fast, image products": round(work, 1),
        "paper / fast, seconds": round(paper_seconds / seconds, 1),
        "agreement fast": metrics.agreement,
        "agreement paper": paper_metrics.agreement,
    }
    print(f"\npaper (K = 20, CG capped at 20) / fast (K = 5): image products {work:.1f},")
    print(f"CPU seconds {paper_seconds / seconds:.1f};", end=" ")
    print(f"agreement {paper_metrics.agreement:.1f} and {metrics.agreement:.1f} %")


def test_estimate_against_a_run(benchmark, digits):
    experiment, model, data = digits
    images, _, _ = data.train.sample(256, 0)
    exclude = list(experiment.exclude)
    table = benchmark.pedantic(
        lambda: snows.estimate(model, images, "1:8", k=5, exclude=exclude, effort="quick"), rounds=1
    )
    result, _, _ = run(digits, "1:8", 256, k=5)
    truth = result.report["seconds"].sum()
    ratio = table["seconds"].sum() / truth
    benchmark.extra_info["estimated / true seconds"] = round(ratio, 2)
    print(f"\nestimated / true seconds: {ratio:.2f} ({table['seconds'].sum():.1f} against {truth:.1f})")
