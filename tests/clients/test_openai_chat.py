"""Chats and completions by OpenAI's own library, with nothing changed but the address."""

import asyncio
import time
from uuid import uuid4

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.clients.conftest import Site

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello there"}]


def test_a_chat_is_answered_and_its_job_can_be_looked_up(site: Site, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="simulator", messages=HELLO)
    assert answer._request_id is not None
    job = site.system.job(answer._request_id)
    assert answer.id == f"chatcmpl-{job['request_id']}"
    [choice] = answer.choices
    assert choice.message.content == job["result"]["message"]["content"]
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 20, 22)


def test_an_answer_can_be_had_again_by_its_id(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="sim", messages=HELLO)
    assert client.chat.completions.retrieve(answer.id) == answer


def test_a_conversation_goes_on_with_the_answer_sent_back(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="sim", messages=HELLO)
    # As people do it: the message object of the answer itself.
    messages = [
        {"role": "system", "content": "You are brief."},
        *HELLO,
        answer.choices[0].message,
        {"role": "user", "content": [{"type": "text", "text": "and on"}]},
    ]
    assert client.chat.completions.create(model="sim", messages=messages).choices[0].message.content  # type: ignore[arg-type]


def test_all_that_is_often_set_is_taken(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="sim",
        messages=HELLO,
        temperature=0.5,
        top_p=0.9,
        max_completion_tokens=3,
        n=2,
        stop=["\n\n"],
        seed=7,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        logit_bias={"50256": -100},
        logprobs=True,
        top_logprobs=2,
        response_format={"type": "text"},
        user="somebody",
        store=False,
        metadata={"purpose": "test"},
        service_tier="auto",
        prompt_cache_key="key",
        safety_identifier="somebody",
        extra_body={"top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1},
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    texts = [choice.message.content for choice in answer.choices]
    assert texts[0] != texts[1]
    assert [len(str(text).split()) for text in texts] == [4, 4]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6


def test_a_stream_tells_the_same_as_the_whole(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="sim", messages=HELLO)
    with client.chat.completions.create(model="sim", messages=HELLO, stream=True) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", None]
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_the_usage_of_a_stream_comes_last_where_it_is_asked_for(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="sim", messages=HELLO, stream=True, n=2, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (2, 40)
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}


def test_the_helper_for_streams_gathers_the_whole_answer(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="sim", messages=HELLO, stream_options={"include_usage": True}) as stream:
        told = [event.delta for event in stream if event.type == "content.delta"]
        answer = stream.get_final_completion()
    assert "".join(told) == answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.total_tokens == 22


def test_pieces_come_as_they_are_generated(client: openai.OpenAI) -> None:
    begin = time.monotonic()
    with client.chat.completions.create(model="slow", messages=HELLO, max_completion_tokens=40, stream=True) as stream:
        times = [time.monotonic() - begin for _ in stream]
    assert len(times) == 42
    # They take two seconds; of what a busy machine hands over late, some comes together.
    assert times[-1] - times[0] > 0.4, "40 tokens, 50 ms each"


def test_a_stream_that_is_closed_early_cancels_its_job(site: Site, client: openai.OpenAI) -> None:
    with client.chat.completions.create(model="slow", messages=HELLO, stream=True) as stream:
        job = next(iter(stream)).id.removeprefix("chatcmpl-")
    assert site.system.until(job, "cancelled", within=30)["result"] is None


def test_a_helper_that_is_left_early_cancels_its_job(site: Site, client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="slow", messages=HELLO) as stream:
        next(iter(stream))
        job = stream.current_completion_snapshot.id.removeprefix("chatcmpl-")
    site.system.until(job, "cancelled", within=30)


def test_headers_tell_of_the_job_and_of_the_limits(site: Site, client: openai.OpenAI) -> None:
    label = uuid4().hex
    response = client.chat.completions.with_raw_response.create(
        model="sim", messages=HELLO, extra_headers={"X-Client-ID": label, "X-Priority": "high"}
    )
    assert response.parse().id == f"chatcmpl-{response.request_id}"
    assert response.headers["x-ratelimit-limit-requests"] == "10000"
    assert 9000 < int(response.headers["x-ratelimit-remaining-requests"]) < 10_000
    assert response.headers["x-ratelimit-reset-requests"].endswith("s")
    [job] = site.jobs(label)
    assert (job["request_id"], job["priority"]) == (response.request_id, "high")


def test_headers_of_a_stream_come_before_its_first_piece(client: openai.OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(model="sim", messages=HELLO, stream=True) as response:
        assert response.request_id
        assert response.headers["x-ratelimit-limit-requests"] == "10000"
        *_, last = response.iter_lines()
    assert last == ""


def test_the_same_request_with_its_key_is_answered_once(client: openai.OpenAI) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    first, second = (
        client.chat.completions.create(model="sim", messages=HELLO, extra_headers=headers) for _ in range(2)
    )
    assert first == second


def test_a_completion_is_answered_whole_and_as_a_stream(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="sim", prompt="hello there", max_tokens=5)
    assert whole.id == f"cmpl-{whole._request_id}"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 5
    *chunks, last = client.completions.create(
        model="sim", prompt="hello there", max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"
    assert last.usage == whole.usage


@pytest.mark.parametrize("prompts", [["one", "two"], [[1, 2], [3, 4]]], ids=["texts", "tokens"])
def test_a_completion_of_several_prompts_has_the_choices_of_each(
    client: openai.OpenAI, prompts: list[str] | list[list[int]]
) -> None:
    answer = client.completions.create(model="sim", prompt=prompts, n=2, max_tokens=5)
    alone = [client.completions.create(model="sim", prompt=prompt, n=2, max_tokens=5) for prompt in prompts]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [choice.text for one in alone for choice in one.choices]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 20


async def test_the_asynchronous_library_is_answered_alike(client: openai.OpenAI, aclient: openai.AsyncOpenAI) -> None:
    whole = client.chat.completions.create(model="sim", messages=HELLO)
    answer = await aclient.chat.completions.create(model="sim", messages=HELLO)
    assert answer.choices == whole.choices
    stream = await aclient.chat.completions.create(model="sim", messages=HELLO, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == answer.choices[0].message.content
    async with aclient.chat.completions.stream(model="sim", messages=HELLO) as helper:
        final = await helper.get_final_completion()
    assert final.choices[0].message.content == text


async def test_many_streams_at_once_are_kept_apart(aclient: openai.AsyncOpenAI) -> None:
    async def said(prompt: str, *, stream: bool) -> str:
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": prompt}]
        if not stream:
            answer = await aclient.chat.completions.create(model="sim", messages=messages)
            return answer.choices[0].message.content or ""
        chunks = await aclient.chat.completions.create(model="sim", messages=messages, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    prompts = [f"prompt {number}" for number in range(8)]
    streamed = await asyncio.gather(*(said(prompt, stream=True) for prompt in prompts))
    assert streamed == await asyncio.gather(*(said(prompt, stream=False) for prompt in prompts))
    assert len(set(streamed)) == 8


async def test_a_task_that_is_cancelled_cancels_its_job(site: Site, aclient: openai.AsyncOpenAI) -> None:
    async def follow(begun: "asyncio.Future[str]") -> None:
        async with await aclient.chat.completions.create(model="slow", messages=HELLO, stream=True) as stream:
            async for chunk in stream:
                if not begun.done():
                    begun.set_result(chunk.id.removeprefix("chatcmpl-"))

    begun: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    following = asyncio.create_task(follow(begun))
    job = await begun
    following.cancel()
    await asyncio.wait([following])
    site.system.until(job, "cancelled", within=30)
