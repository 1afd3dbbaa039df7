"""A report with evidence of every kind, as validate writes it, for tests of page and card.

The figures are plausible and made up; labels try to break out of the markup.
"""

from __future__ import annotations

from typing import Any

BREAKOUT = '<script>alert("x")</script> & "quoted"'


def _row(stage: str, accuracy: float, size: int, p50: float | None, kwh: float | None) -> dict:
    times = p50 and {"p50": p50, "p95": 1.7 * p50, "p99": 2.4 * p50}
    return {
        "stage": stage,
        "quality": {"accuracy": accuracy, "macro_f1": accuracy - 0.001, "nll": 0.31, "ece": 0.02},
        "file_bytes": size,
        "parameters": size // 4,
        "flops": size * 3,
        "latency_ms": times,
        "cold_start_ms": p50 and 200.0,
        "throughput_per_s": p50 and 1000 / p50,
        "peak_memory_bytes": p50 and 90_000_000,
        "energy_kwh_per_1k": kwh,
        "co2e_g_per_1k": kwh and 380 * kwh,
        "energy_method": "estimated" if kwh else None,
    }


def rich_summary() -> dict[str, Any]:
    """`reports/summary.json` of a run that measured everything."""
    checks = [
        ("drop", "max", 1.11, 2.0), ("drop_upper95", "max", 1.75, 3.5),
        ("macro_f1_drop", "max", 1.1, 2.5), ("class_drop", "max", 7.4, 15.0),
        ("ece", "max", 0.018, 0.05), ("bytes", "max", 4_230_793, 5_000_000),
        ("parity", "min", 0.988, 0.97),
    ]  # fmt: skip
    return {
        "primary": "accuracy",
        "split": "test",
        "n": 3080,
        "stages": [
            _row("teacher", 0.9273, 91_457_259, 9.1, 7.3e-5),
            _row("linear", 0.9110, 10_920_653, 0.664, 4.96e-6),
            _row("distill", 0.9231, 28_739_362, None, None),
            _row("prune", 0.8086, 16_335_983, None, None),
            _row("finetune", 0.9166, 16_336_033, None, None),
            _row("quantize", 0.9162, 4_230_793, None, None),
            _row("deploy", 0.9162, 4_230_793, 0.376, 3.01e-6),
        ],
        "ratios": {
            "quality_retained": 0.9881,
            "quality_retained_ci95": [0.9812, 0.9951],
            "size": 21.6,
            "speed_p50": 24.2,
            "speed_p50_vs_onnx_fp32": 11.1,
            "energy": 24.25,
        },
        "gate": {
            "passed": True,
            "checks": [
                {"metric": m, "kind": k, "value": v, "limit": x, "passed": True}
                for m, k, v, x in checks
            ],
            "artifact_sha256": "74387ce264d894a23777416b0f0d26734aa737e9c85b66cb69124c52795731d8",
            "detectable_drop": 1.08,
        },
        "evidence": evidence(),
    }


def evidence() -> dict[str, Any]:
    """Every member that ``evidence`` may have."""
    return {
        "calibration": {
            "temperature": 0.78, "ece_before": 0.061, "ece_after": 0.018,
            "bins": {"teacher": _bins(-0.06), "deploy": _bins(0.01)},
        },
        "mcnemar": {"teacher_only": 88, "candidate_only": 54, "p_value": 0.0055},
        "flips": {"rate": 0.068, "helped": 0.0175, "hurt": 0.0286, "both_wrong": 0.0219},
        "per_class": [
            {"label": label, "n": 40, "teacher_recall": 0.95, "candidate_recall": 0.95 - lost / 100,
             "drop": lost, "shrunken": lost / 2, "lower": lost / 2 - 6}
            for label, lost in (
                ("card_payment_wrong_exchange_rate", 15.0), (BREAKOUT, 12.5),
                ("balance_not_updated_after_cheque_or_cash_deposit", 7.5), ("top_up_failed", 5.0),
                ("why_verify_identity", 2.5), ("age_limit", 0.0), ("pin_blocked", -2.5),
            )
        ],
        "confusions": [
            {"label": "why_verify_identity", "answered": "verify_my_identity",
             "teacher": 1, "candidate": 6},
            {"label": BREAKOUT, "answered": BREAKOUT, "teacher": 4, "candidate": 0},
        ],
        "robustness": [
            {"name": name, "n": 3080, "teacher": 0.9273 - t / 100, "candidate": 0.9162 - c / 100,
             "teacher_drop": t, "candidate_drop": c, "flip_rate": 0.09}
            for name, t, c in (("typos", 5.1, 9.4), ("upper case", 0.0, -0.1),
                               ("a word dropped", 4.4, 5.2), ("cut to half", 18.2, 20.3))
        ],
        "ood": {"source": "hwu64", "n": 1076, "auroc": {"teacher": 0.951, "candidate": 0.923},
                "score": "max softmax"},
        "slices": [
            {"slice": "length", "value": value, "n": n, "teacher": 0.9273 + t / 100,
             "candidate": 0.9162 + c / 100, "gap": c, "teacher_gap": t, "low": -0.5, "high": 2.9,
             "p_value": 0.4}
            for value, n, t, c in (("up to 8 words", 800, -1.1, -2.4), ("9 to 14 words", 1500, 0.9,
                                   1.2), ("more", 780, -0.6, 0.2))
        ],
        "small_slices": [{"slice": "source", "value": "phone", "n": 7}],
        "counterfactual": [
            {"name": "names", "n": 212, "teacher_flip_rate": 0.009, "candidate_flip_rate": 0.014},
        ],
        "memorisation": {"pairs": 96, "confidence_near": 0.941, "confidence_far": 0.902,
                         "gap": 0.039, "low": 0.008, "high": 0.071},
        "long_texts": {"source": "20 Newsgroups", "n": 500, "truncated_share": 0.83,
                       "teacher": 0.712, "candidate": 0.655,
                       "rows": [{"name": name, "teacher": theirs, "candidate": own,
                                 "agreement": 0.8, "teacher_confidence": 0.61,
                                 "candidate_confidence": 0.58}
                                for name, theirs, own in (("asked before it", 0.712, 0.655),
                                                          ("not asked", None, None))]},
        "scripts": [{"script": "Cyrillic", "n": 50, "unknown_share": 0.02,
                     "mean_confidence": 0.31}],
        "vocabulary": {"pieces": 4272, "unknown": [
            {"texts": "validation", "source": 0.0, "student": 0.00012},
            {"texts": "elsewhere", "source": 0.0001, "student": 0.0034},
        ]},
        "latency": [
            {"model": model, "batch": batch, "pieces": pieces, "threads": threads,
             "p50": p50 * batch**0.8, "p95": 1.6 * p50 * batch**0.8, "p99": 2 * p50 * batch**0.8,
             "texts_per_s": 1000 * batch**0.2 / p50}
            for model, p50 in (("teacher", 9.1), ("deploy", 0.376))
            for batch in (1, 8, 32) for pieces in (8, 64) for threads in (1, 2)
        ],
        "adaptive_depth": [
            {"confidence": confidence, "accuracy": accuracy, "share": [early, 1 - early],
             "latency_ms": 0.41 - 0.2 * early, "served": confidence == 0.72}
            for confidence, accuracy, early in ((0.3, 0.861, 1.0), (0.5, 0.893, 0.82),
                                                (0.72, 0.915, 0.61), (0.9, 0.9164, 0.37),
                                                (1.0, 0.9162, 0.0))
        ],
        "engine": {"text_to_label_p50": 0.376, "engine_p50": 0.291, "ratio": 1.29},
        "energy": {
            "stages": [
                {"stage": stage, "kwh": kwh, "seconds": 8e4 * kwh, "method": "estimated"}
                for stage, kwh in (("baseline", 6.1e-3), ("teach", 4e-4), ("distill", 9.2e-3),
                                   ("prune", 7e-4), ("finetune", 8.8e-3), ("quantize", 9e-5))
            ],
            "pipeline_kwh": 0.02529, "saved_kwh_per_1k": 7e-5,
            "pays_back_after_predictions": 361_286, "method": "estimated",
        },
        "quantisation": {
            "precision": "int8", "runtime": "onnxruntime", "kl": 0.0021, "flip_rate": 0.0065,
            "drop": 0.06, "loss_budget": 0.3,
            "runtimes": [
                {"runtime": name, "scheme": scheme, "accuracy": 0.932, "kl": 0.0021,
                 "flip_rate": 0.0065, "drop": 0.06, "bytes": 4_230_793, "within": True,
                 "answered_by": "onnxruntime", "absent": absent, "not_ready": [],
                 "p50_ms": p50}
                for name, scheme, absent, p50 in (("onnxruntime", "dynamic", None, 0.382),
                                                  ("openvino", "static", None, 0.417),
                                                  ("tensorrt", "static", "no NVIDIA GPU", None))
            ],
            "first_divergence": {"layer": "encoder.layer.0.intermediate", "error": 0.031},
            "sensitivity": [
                {"layer": layer, "kl": kl, "bytes": 150_000}
                for layer, kl in (("embeddings", 1.3e-3), ("encoder.layer.0.output", 8e-4),
                                  ("encoder.layer.2.output", 3e-4), ("classifier", 2e-5))
            ],
            "kept_float": ["encoder.layer.0.output"],
            "tried": [
                {"what": "float32", "accuracy": 0.933, "kl": 0.0, "flip_rate": 0.0,
                 "bytes": 16_336_033, "p50_ms": 0.71},
                {"what": "int8, dynamic", "accuracy": 0.932, "kl": 0.0021, "flip_rate": 0.0065,
                 "bytes": 4_230_793, "p50_ms": 0.376},
            ],
            "action": "one layer was kept in float, which brought the loss within the budget",
        },
    }  # fmt: skip


def _bins(shift: float) -> list[dict[str, Any]]:
    """Ten bins of confidence; the first is empty."""
    return [
        {"low": i / 10, "high": (i + 1) / 10, "n": i**3,
         "confidence": (i + 0.5) / 10 if i else None,
         "accuracy": min(1.0, (i + 0.5) / 10 + shift) if i else None}
        for i in range(10)
    ]  # fmt: skip
