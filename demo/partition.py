"""Partitions: a table of the user's own, looked after from then on."""

from __future__ import annotations

import json

from demo.stage import Stage


def play(stage: Stage) -> None:
    """Hand the models' prices over as a log of price changes, show the plan, and let a month go."""
    stage.scene("A log of every price, in partitions by month")
    with stage.connect() as superuser:
        superuser.execute("create table public.price_log (at timestamptz not null, model text, price jsonb) partition by range (at)")
        stage.sql("create table price_log (at timestamptz not null, model text, price jsonb) partition by range (at);")
        superuser.execute(
            "create table public.price_log_default partition of public.price_log default;"
            "create temp table months as select date_trunc('month', now(), 'UTC') - n * interval '1 month' as at from generate_series(0, 14) n"
        )
        with superuser.cursor() as cursor:
            cursor.executemany(
                "insert into public.price_log select m.at, %s, %s::jsonb from months m",
                [(model, json.dumps(price)) for model, price in stage.prices.items()],
            )
        with stage.step("select llm.create_partitions(('public.price_log', 'at', 'monthly', 365))") as step:
            superuser.execute("select llm.create_partitions(('public.price_log', 'at', 'monthly', 365)::llm.partition_strategy)")
            row = superuser.execute("select partitions, (select count(*) from public.price_log) from llm.partition_status s"
                                    " where s.parent = 'public.price_log'").fetchone()  # fmt: skip
            assert row
            step.result = f"{row[1]} rows in {row[0]} partitions"

        stage.say("\nA shorter retention, and what would follow from it:")
        superuser.execute("select llm.create_partitions(('public.price_log', 'at', 'monthly', 300)::llm.partition_strategy)")
        stage.sql("select action, partition_name, reason from llm.partition_plan('price_log');")
        plan = superuser.execute("select action, partition_name, reason from llm.partition_plan('public.price_log') order by begins_at nulls last")
        stage.table(("action", "partition", "reason"), plan.fetchall()[:5])
        with stage.step("call llm.manage_partitions()") as step:
            superuser.execute("call llm.manage_partitions()")
            done = superuser.execute("select last_actions from llm.partition_status where parent = 'public.price_log'").fetchone()
            assert done
            step.result = ", ".join(done[0])
