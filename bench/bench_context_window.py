"""context_window() as the history grows: see README.md."""

from __future__ import annotations

import json

from bench.support import AtMost, application, database, line, medians, one, per_call, title
from tools.cluster import Cluster

WORDS = ["index", "scan", "heap", "tuple", "vacuum", "page", "buffer", "lock", "snapshot", "commit", "checkpoint", "replica", "toast", "planner"] * 2


def run(cluster: Cluster, *, quick: bool) -> None:
    """Measure a window of 4,000 tokens of 10, 1,000 and 100,000 messages."""
    rounds, calls = (3, 20) if quick else (7, 100)
    with database(cluster, "context") as superuser:
        superuser.execute("grant llm_app to app")
        with application(cluster, "context") as app:
            conversations = {}
            for size in (10, 1_000, 10_000 if quick else 100_000):
                conversations[size] = conversation = one(app, "select llm.create_conversation()")
                for start in range(0, size, 10_000):
                    messages = [
                        {
                            "role": "assistant" if number % 2 else "user",
                            "content": f"{WORDS[number % 16]} {WORDS[number // 16 % 16]} number{number} and more words",
                            "token_count": 60,
                        }
                        for number in range(start, min(size, start + 10_000))
                    ]
                    app.execute("select llm.append_messages(%s, %s)", [conversation, json.dumps(messages)])
                app.execute("select llm.save_summary(%s, %s, 'What was said', 100)", [conversation, size // 2])
            app.execute("select llm.index_messages(1000000)")
            app.commit()
            superuser.execute("vacuum analyze")
            app.execute("select llm.set_tenant('acme')")
            statements = {
                "newest and summary": "select * from llm.context_window(%s, 4000)",
                "with words recalled": "select * from llm.context_window(%s, 4000, 'number17 checkpoint')",
            }
            title("context_window of 4,000 tokens (peer: the same of 1,000 messages)")
            for what, statement in statements.items():
                time = medians(
                    rounds,
                    **{
                        str(size): per_call(lambda c=each, s=statement: app.execute(s, [c]).fetchall(), calls)  # type: ignore[misc]
                        for size, each in conversations.items()
                    },
                )
                for size in conversations:
                    bar = AtMost(1.5) if size > 1_000 and what == "newest and summary" else None
                    line(f"{size:,} messages, {what}", time[str(size)], "1,000 messages", time["1000"], bar)
