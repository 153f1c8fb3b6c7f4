"""How a player was made, for its model card: by self-play, from preferences, or from rewards; and whose idea it is."""

from __future__ import annotations

from dataclasses import dataclass

from sparring.report.records import Row, Run

SPIN = """@inproceedings{chen2024selfplay,
  title     = {Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models},
  author    = {Chen, Zixiang and Deng, Yihe and Yuan, Huizhuo and Ji, Kaixuan and Gu, Quanquan},
  booktitle = {International Conference on Machine Learning},
  year      = {2024},
  eprint    = {2401.01335},
  archivePrefix = {arXiv}
}"""
DPO = """@inproceedings{rafailov2023direct,
  title     = {Direct Preference Optimization: Your Language Model is Secretly a Reward Model},
  author    = {Rafailov, Rafael and Sharma, Archit and Mitchell, Eric and Ermon, Stefano and Manning, Christopher D.
               and Finn, Chelsea},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
  eprint    = {2305.18290},
  archivePrefix = {arXiv}
}"""
IPO = """@inproceedings{azar2024general,
  title     = {A General Theoretical Paradigm to Understand Learning from Human Preferences},
  author    = {Azar, Mohammad Gheshlaghi and Guo, Zhaohan Daniel and Piot, Bilal and Munos, Remi and Rowland, Mark
               and Valko, Michal and Calandriello, Daniele},
  booktitle = {International Conference on Artificial Intelligence and Statistics},
  year      = {2024},
  eprint    = {2310.12036},
  archivePrefix = {arXiv}
}"""
GRPO = """@article{shao2024deepseekmath,
  title     = {DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models},
  author    = {Shao, Zhihong and Wang, Peiyi and Zhu, Qihao and Xu, Runxin and Song, Junxiao and Bi, Xiao and
               Zhang, Haowei and Zhang, Mingchuan and Li, Y. K. and Wu, Y. and Guo, Daya},
  year      = {2024},
  eprint    = {2402.03300},
  archivePrefix = {arXiv}
}"""
RLOO = """@inproceedings{ahmadian2024back,
  title     = {Back to Basics: Revisiting REINFORCE-Style Optimization for Learning from Human Feedback in LLMs},
  author    = {Ahmadian, Arash and Cremer, Chris and Gallé, Matthias and Fadaee, Marzieh and Kreutzer, Julia and
               Pietquin, Olivier and Üstün, Ahmet and Hooker, Sara},
  booktitle = {Annual Meeting of the Association for Computational Linguistics},
  year      = {2024},
  eprint    = {2402.14740},
  archivePrefix = {arXiv}
}"""
REINFORCE = """@article{williams1992simple,
  title     = {Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning},
  author    = {Williams, Ronald J.},
  journal   = {Machine Learning},
  volume    = {8},
  pages     = {229--256},
  year      = {1992}
}"""
ALGORITHMS = {"grpo": ("GRPO", GRPO), "rloo": ("RLOO", RLOO), "reinforce": ("REINFORCE", REINFORCE)}


@dataclass(frozen=True, slots=True)
class Origin:
    """How players of a run were made after fine-tuning.

    words     what follows "trained"
    tags      for the hub
    sections  of the config, which hold its settings
    idea      what is cited, and its entry
    verb      that makes such a run
    """

    words: str
    tags: tuple[str, ...]
    sections: tuple[str, ...]
    idea: str
    entry: str
    verb: str


def origin_of(run: Run) -> Origin:
    """By what the run's players were trained."""
    if run.rewarded:
        name, entry = ALGORITHMS[str(run.setting("reinforce", "algorithm"))]
        return Origin(
            words=f"by reinforcement learning ({name}){_scorer(run.config.get('scorer'))}",
            tags=("reinforcement-learning", name.lower()),
            sections=("reinforce", "scorer", "generation"),
            idea="Reinforcement learning",
            entry=entry,
            verb="reinforce",
        )
    if run.prefers:
        name, entry = ("IPO", IPO) if run.setting("dpo", "loss") == "ipo" else ("DPO", DPO)
        return Origin(
            words=f"on pairs of a chosen and a rejected answer ({name})",
            tags=("preference", name.lower()),
            sections=("dpo",),
            idea="Preference optimisation",
            entry=entry,
            verb="dpo",
        )
    return Origin(
        words="by self-play (SPIN)",
        tags=("spin", "self-play"),
        sections=("selfplay", "generation"),
        idea="Self-play fine-tuning",
        entry=SPIN,
        verb="run",
    )


def _scorer(section: object) -> str:
    settings: Row = section if isinstance(section, dict) else {}
    return f" on the rewards of scorer {settings['name']}" if settings.get("name") else ""


def imported(run: Run) -> bool:
    """Whether nothing was trained: an adapter that was made elsewhere was only measured."""
    plain = not run.rewarded and not run.prefers
    return plain and bool(run.config.get("start")) and run.setting("selfplay", "iterations") == 0
