"""The rollout server against everybody: who it talks to, what it refuses, and that nothing that is sent ends it."""

import json
import random
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from scalpel.chat import load_tokenizer, token_ids
from scalpel.errors import UserError
from scalpel.inference import EngineSettings, open_engine, server
from scalpel.inference.meeting import LISTENS, Meeting, ServerOrder, nonce, proof
from scalpel.inference.remote import Connection, Servers, full_weights
from scalpel.inference.requests import Request
from scalpel.launch.crew import Crew, until
from scalpel.launch.servers import RolloutServers
from scalpel.weights import SAFETENSORS, load_model

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = ["How many?", "Tom has 2 pens and gets 3 more. How many now?", "Say it.", "A, B or C? " * 6]
COMPLETIONS, MOST = 16, 24


class OverTCP(RolloutServers):
    """As on another node, but on this one."""

    def __enter__(self):
        def heard(line: str) -> None:
            if line.startswith(LISTENS):
                self.meeting.tell(0, "127.0.0.1", int(line.split()[-1]))

        arguments = [self.order.model_dump_json(), "127.0.0.1"]
        self.crew.start("server", "scalpel.inference.server", arguments, {}, secret=self.meeting.token, heard=heard)
        return self


def order(base: Path) -> ServerOrder:
    return ServerOrder(
        kind="transformers", model=str(base), engine=EngineSettings(batch_size=5), completions=COMPLETIONS,
        max_tokens=MOST,
    )  # fmt: skip


@pytest.fixture(scope="module")
def servers(tiny_base):
    """One server, started as the launcher does."""
    with Crew() as crew, RolloutServers(crew, order(tiny_base), [(None, None)]) as found:
        Servers(found.meeting, 120.0).wait()
        yield found


@pytest.fixture(scope="module")
def over_tcp(tiny_base):
    with Crew() as crew, OverTCP(crew, order(tiny_base), [(None, None)]) as found:
        Servers(found.meeting, 120.0).wait()
        yield found


@pytest.fixture(params=["servers", "over_tcp"])
def each(request) -> RolloutServers:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def asked(tiny_base) -> list[Request]:
    tokenizer = load_tokenizer(tiny_base)
    return [Request(token_ids(tokenizer, text), (7, number), 3, MOST) for number, text in enumerate(QUESTIONS)]


def process(servers: RolloutServers) -> subprocess.Popen:
    return servers.crew.children["server"].process


def client(servers: RolloutServers) -> Servers:
    return Servers(servers.meeting, 30.0)


def proved(servers: RolloutServers) -> Connection:
    connection = Connection(servers.meeting.address(0), servers.meeting.token)
    connection.prove()
    connection.sock.settimeout(30)
    return connection


# ---------------------------------------------------------------- what it answers


def test_it_answers_as_an_engine_here(each, asked, tiny_base, other_base):
    rollouts = client(each)
    for version, directory in enumerate((tiny_base, other_base)):
        weights = full_weights(load_model(directory))
        here = open_engine("transformers", directory, EngineSettings())
        for temperature, top_p, logprobs in ((1.0, 1.0, True), (0.6, 0.9, False)):
            found = rollouts.complete(asked, weights, version, temperature, top_p, logprobs)
            expected = here.complete(asked, temperature, top_p, logprobs)
            assert [[one[:2] for one in mine] for mine in found] == [[one[:2] for one in mine] for mine in expected]
            for mine, theirs in zip(found, expected, strict=True):
                assert [one.logprobs for one in mine] == [pytest.approx(one.logprobs, abs=1e-4) for one in theirs]
    again = rollouts.complete(asked, [], 1, 0.6, 0.9)  # it holds these weights: they are not sent
    assert again == found


def test_weights_travel_in_the_servers_dtype(servers, asked, tiny_base, monkeypatch):
    """Half the bytes for a server in bfloat16, and the same policy there."""
    sizes, begin = [], Connection.begin
    monkeypatch.setattr(Connection, "begin", lambda self, *head: (sizes.append(head), begin(self, *head)))
    weights = full_weights(load_model(tiny_base))
    narrow = Servers(servers.meeting, 30.0, torch.bfloat16)
    found = narrow.complete(asked, weights, 50, 1.0, 1.0)
    rounded = [(name, tensor.detach().to(torch.bfloat16)) for name, tensor in weights]
    assert client(servers).complete(asked, rounded, 51, 1.0, 1.0) == found
    assert client(servers).complete(asked, weights, 52, 1.0, 1.0) != found
    half, also_half, whole = (size for method, _, size in sizes if method == "PUT")
    assert 2 * half == 2 * also_half == whole == 4 * sum(tensor.numel() for _, tensor in weights)


def test_sharded_weights_are_cast_before_they_are_gathered_and_kept_by_who_wants_them(tiny_base, tmp_path):
    """On one rank: what is gathered is the whole tensor."""
    model = load_model(tiny_base)
    expected = [(name, parameter.detach().to(torch.bfloat16)) for name, parameter in model.named_parameters()]
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/met", rank=0, world_size=1)
    try:
        sharded = fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        found = full_weights(sharded, torch.bfloat16)
        assert full_weights(sharded, torch.bfloat16, kept=False) == []
        whole = full_weights(sharded)
    finally:
        torch.distributed.destroy_process_group()
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert all(mine.equal(theirs) for (_, mine), (_, theirs) in zip(found, expected, strict=True))
    assert all(tensor.dtype == torch.float32 for _, tensor in whole)


def test_a_prompt_beyond_the_positions_is_answered_whole(servers, tiny_base):
    """As by an engine of a rank."""
    model = load_model(tiny_base)
    long = [Request([5, 6, 7] * model.config.max_position_embeddings, (1,), 1, 4)]
    found = client(servers).complete(long, full_weights(model), 20, 0.0, 1.0)
    assert [one[:2] for one in found[0]] == [
        one[:2] for one in open_engine("transformers", tiny_base, EngineSettings()).complete(long, 0.0, 1.0)[0]
    ]


def test_weights_that_end_early_are_not_held(servers, asked, tiny_base):
    """The trainer dies while it sends: what is there then is nobody's policy, and completions of it are refused."""
    weights = full_weights(load_model(tiny_base))
    before = client(servers).complete(asked, weights, 30, 0.0, 1.0)
    connection = proved(servers)
    tensors = [[name, SAFETENSORS[t.dtype], list(t.shape)] for name, t in weights]
    size = sum(t.numel() * t.element_size() for _, t in weights)
    announced = json.dumps({"version": 30, "tensors": tensors}).encode()
    assert connection.ask("POST", "/weights", announced) == (200, b"{}")
    connection.begin("PUT", "/weights", size)
    connection.send(b"\xff" * (size // 2))
    connection.close()
    assert until(20, lambda: json.loads(client(servers)._request(0, "GET", "/health")[1])["version"] is None)
    assert client(servers).complete(asked, weights, 30, 0.0, 1.0) == before


# ---------------------------------------------------------------- who it talks to


def test_nothing_secret_is_in_arguments_or_environment(each):
    token, pid = each.meeting.token, process(each).pid
    assert len(token) == 64
    for name in ("cmdline", "environ"):
        assert token.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert token not in str(each.environment) and Path(each.environment["SCALPEL_ROLLOUT_SERVERS"]).is_dir()
    assert stat.S_IMODE(each.meeting.directory.stat().st_mode) == 0o700


def other_token(servers: RolloutServers, folder: Path) -> Meeting:
    """The same servers, met with another token."""
    folder.mkdir()
    for path in servers.meeting.directory.iterdir():
        if path.suffix == ".sock":
            (folder / path.name).symlink_to(path)
        else:
            shutil.copy(path, folder)
    (folder / "run.json").write_text(json.dumps({"token": "0" * 64, "servers": 1}))
    return Meeting(folder)


def test_a_client_without_the_token_is_served_nothing(each, asked, tmp_path):
    with pytest.raises(UserError, match="does not prove"):
        Servers(other_token(each, tmp_path / "meeting"), 1.0).wait()
    for given in ("", "0" * 64, each.meeting.token):  # the token itself is no proof
        connection = Connection(each.meeting.address(0), "")
        connection.connect()
        for connection.authorization in (given, "é" * 64):
            assert connection.ask("GET", "/health")[0] == 403
        connection.close()


def test_a_proof_holds_for_its_connection_alone(each):
    heard, other = proved(each), Connection(each.meeting.address(0), each.meeting.token)
    assert heard.ask("GET", "/health")[0] == 200
    other.connect()
    other.authorization = heard.authorization
    assert other.ask("GET", "/health")[0] == 403
    status, _ = other.ask("GET", f"/challenge?nonce={nonce()}")
    assert status == 200
    assert other.ask("GET", "/health")[0] == 403  # a challenge of its own: the server's number is another
    heard.close(), other.close()


def forgery(listening: socket.socket, answer, said: list[bytes]) -> None:
    """Another user's process that stands where the server should: keeps what it hears, answers by `answer`."""
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        connection.settimeout(3)
        try:
            while part := connection.recv(1 << 16):
                said.append(part)
                connection.sendall(answer(part))
        except OSError:
            pass
        connection.close()


def response(content: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(content), content)


def echoed(heard: bytes) -> bytes:
    number = heard.split(b"nonce=")[1][:64].decode()
    return response(json.dumps({"nonce": number, "proof": number}).encode())


FORGERIES = {
    "yes to all": lambda _: response(b'{"version": 1, "completions": [[[[5], 0, null]]]}'),
    "no proof": lambda _: response(json.dumps({"nonce": nonce()}).encode()),
    "guessed proof": lambda _: response(json.dumps({"nonce": nonce(), "proof": nonce()}).encode()),
    "the trainer's number": echoed,
    "no JSON": lambda _: response(b"\xff\xfe[[[["),
    "deep JSON": lambda _: response(b"[" * 4000),
    "no HTTP": lambda _: b"\0" * 100,
    "endless": lambda _: b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500,
    "nothing": lambda _: b"",
}  # fmt: skip


@pytest.mark.parametrize("kind", FORGERIES)
def test_who_stands_in_a_server_s_place_gets_nothing(kind, asked, tmp_path, monkeypatch):
    """Neither token nor prompts nor weights: a random number. The trainer takes none of its answers."""
    monkeypatch.setattr("scalpel.inference.remote.PROOF_SECONDS", 1.0)
    (tmp_path / "run.json").write_text(json.dumps({"token": "5" * 64, "servers": 1}))
    meeting, said = Meeting(tmp_path), []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        meeting.tell(0, "127.0.0.1", listening.getsockname()[1])
        threading.Thread(target=forgery, args=(listening, FORGERIES[kind], said), daemon=True).start()
        rollouts = Servers(meeting, 1.5)
        with pytest.raises(UserError, match="did not answer within"):
            rollouts.complete(asked, [("a", torch.ones(3))], 1, 1.0, 1.0)
        listening.shutdown(socket.SHUT_RDWR)
    heard = b"".join(said)
    assert b"GET /challenge?nonce=" in heard and b"POST" not in heard and b"Authorization" not in heard
    assert b"5" * 64 not in heard and len(heard) < 400 * len(said)


def test_one_who_passes_the_proofs_on_to_the_server_is_found_out(over_tcp):
    """A relay at another address: both proofs are bound to the place where the two met."""

    def relay(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with socket.create_connection(over_tcp.meeting.address(0)) as onward:
            onward.sendall(connection.recv(4096))
            connection.sendall(onward.recv(4096))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=relay, args=(listening,), daemon=True).start()
        connection = Connection(("127.0.0.1", listening.getsockname()[1]), over_tcp.meeting.token)
        with pytest.raises(ConnectionError, match="does not prove"):
            connection.prove()
        connection.close()


def test_proofs_say_who_made_them():
    """What a server sends cannot be sent back to it."""
    mine, theirs = nonce(), nonce()
    made = {
        proof("t", side, *both, "here") for side in ("server", "client") for both in ((mine, theirs), (theirs, mine))
    }
    assert len(made) == 4


# ---------------------------------------------------------------- limits


@pytest.fixture
def hasty(servers, tiny_base, monkeypatch, tmp_path):
    """A server in this process that waits for a proof half a second, and its address."""
    monkeypatch.setattr(server, "PROOF_SECONDS", 0.5)
    monkeypatch.setattr(server.Handler, "timeout", 0.5)
    monkeypatch.setattr(server, "PROVED", 4)
    (tmp_path / "run.json").write_text(json.dumps({"token": "5" * 64, "servers": 1}))
    meeting = Meeting(tmp_path) if len(str(tmp_path)) < 80 else Meeting.create(1)
    listening = meeting.listen(0)
    made = server.Server(listening, meeting.token, server.Policy(order(tiny_base)))
    threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True).start()
    yield meeting
    made.shutdown()
    made.server_close()
    if meeting.directory != tmp_path:
        meeting.remove()


def opened(meeting: Meeting) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX)
    connected.connect(meeting.address(0))
    connected.settimeout(10)
    return connected


def test_idle_connections_are_ended_and_keep_nobody_out(hasty):
    idle = [opened(hasty) for _ in range(3 * server.UNPROVED)]
    threads = threading.active_count()
    assert threads < 2 * server.UNPROVED + 20
    Servers(hasty, 5.0).wait()
    started = time.monotonic()
    assert all(connected.recv(1) == b"" for connected in idle)
    assert time.monotonic() - started < 5


def test_a_head_that_comes_byte_by_byte_is_cut(hasty):
    connected, started = opened(hasty), time.monotonic()
    with pytest.raises(OSError):
        for byte in b"GET /challenge?nonce=" + b"0" * 1000:
            connected.sendall(bytes([byte]))
            time.sleep(0.02)
    assert time.monotonic() - started < 3


def test_so_many_clients_and_no_more(hasty):
    found = []
    for _ in range(server.PROVED + 2):
        connection = Connection(hasty.address(0), hasty.token)
        connection.prove()
        found.append((connection.ask("GET", "/health")[0], connection))
    assert [status for status, _ in found] == [200] * server.PROVED + [429] * 2
    found[0][1].close()
    Servers(hasty, 5.0).wait()
    for _, connection in found:
        connection.close()


# ---------------------------------------------------------------- hostile requests


def head(method: str, path: str, *headers: str, version: str = "HTTP/1.1") -> bytes:
    return "\r\n".join([f"{method} {path} {version}", *headers, "", ""]).encode("latin-1", errors="replace")


def sent(method: str, path: str, body: bytes, *headers: str) -> bytes:
    return head(method, path, f"Content-Length: {len(body)}", *headers) + body


GOOD = {"requests": [[[5, 6], [7, 0], 1, 2]], "version": 0, "temperature": 1.0, "top_p": 1.0, "logprobs": False}
HUGE, WRONG = 10**400, [None, "x", -1, 1.5, [], {}, True, 2**70, [[]], "é\0", "1"]


def wrong_completions(vocabulary: int) -> list[bytes]:
    """Bodies of /complete, each of them wrong."""
    found = [b"", b"{", b"null", b"[]", b"\xff\xfe", b"[" * 10**5, b'{"a":' * 10**4, b'{"version": 1}', b"\0" * 99]
    for field in GOOD:
        found.append(json.dumps({k: v for k, v in GOOD.items() if k != field}).encode())
        for value in WRONG:
            if not (value is True and field == "logprobs"):
                found.append(json.dumps(GOOD | {field: value}).encode())
    for place in range(4):
        for value in [*WRONG, 0, 10**9, HUGE, [0] * 9, [vocabulary], [-1], [2**31]]:
            request = [[5, 6], [7, 0], 1, 2]
            request[place] = value
            found.append(json.dumps(GOOD | {"requests": [request]}).encode())
        found.append(json.dumps(GOOD | {"requests": [[[5], [7], 1, 2][:place]]}).encode())
    found.append(json.dumps(GOOD | {"requests": [[[5, 6], [7, 0], 1, 2, 3]]}).encode())
    found.append(json.dumps(GOOD | {"requests": [[[5], [7], 1, 2]] * (COMPLETIONS + 1)}).encode())
    found.append(json.dumps(GOOD | {"requests": [[[5], [7], 1, MOST + 1]]}).encode())
    found.append(json.dumps(GOOD | {"requests": [[[5] * 10**5, [7], 1, 2]]}).encode())
    for text in ("NaN", "Infinity", "-Infinity", "1e999", "-1e-9", "1.0000001e1", '"1.0"'):
        found.append(json.dumps(GOOD | {"temperature": 123.0}).replace("123.0", text).encode())
        found.append(json.dumps(GOOD | {"top_p": 123.0}).replace("123.0", text).encode())
    found.append(json.dumps(GOOD | {"extra": 1}).encode())
    found.append(json.dumps(GOOD | {"version": 10**6}).encode())  # of other weights
    return found


def wrong_weights(tensors: list) -> list[bytes]:
    """Bodies of POST /weights, each of them wrong."""
    found = [b"", b"{}", b"[1]", b'{"version": 1}', b'{"version": 1, "tensors": []}', b"\0", b"[" * 10**5]
    name, dtype, shape = tensors[0]
    for wrong in (
        [], ["x"], [name, dtype], [name, dtype, shape, 1], ["x" * 2000, dtype, shape], [name, "I64", shape],
        [name, "F33", shape], [name, dtype, shape[::-1] if len(set(shape)) > 1 else [*shape, 1]], [name, dtype, [HUGE]],
        [name, dtype, [-1, 2]], [name, dtype, [2**63, 2**63]], [name, dtype, []], [name, dtype, "ab"],
        [name, dtype, [1] * 9], [5, dtype, shape], [None, None, None], ["é\0", dtype, shape], [name, dtype, [0]],
    ):  # fmt: skip
        found.append(json.dumps({"version": 1, "tensors": [wrong, *tensors[1:]]}).encode())
        found.append(json.dumps({"version": 1, "tensors": [*tensors, wrong]}).encode())
    found.append(json.dumps({"version": 1, "tensors": tensors + tensors[:1]}).encode())
    found.append(json.dumps({"version": 1, "tensors": tensors[1:]}).encode())
    found += [json.dumps({"version": value, "tensors": tensors}).encode() for value in WRONG]
    return found


def wrong_heads() -> list[bytes]:
    """Whole requests that are wrong before their body is looked at."""
    found = []
    for method in ("HEAD", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "X" * 200, "É"):
        found.append(head(method, "/health"))
    for path in ("/", "/x", "/health/", "/../health", "*", "/%00", "/h\xe9alth", "/weights" * 99,
                 "http://a/b", "/" + "a" * 70_000, "/health\x00", "http://[", "/challenge",
                 "/challenge?nonce=", "/challenge?nonce=zz",
                 f"/challenge?nonce={'0' * 63}", f"/challenge?nonce={'0' * 65}", f"/challenge?a={'0' * 64}",
                 f"/challenge?nonce={'é' * 64}", f"/challenge?nonce={'0' * 64}&a"):  # fmt: skip
        found += [head("GET", path), head("POST", path, "Content-Length: 0")]
    for length in ("-1", "1e9", "9" * 30, "0x10", "", "1,1", "é", "1 1", "+1", "1.0", "\x00", "٣"):
        found.append(head("POST", "/complete", f"Content-Length: {length}"))
    found += [
        head("POST", "/complete", "Content-Length: 1", "Content-Length: 2") + b"{}",
        head("POST", "/complete", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n",
        head("POST", "/complete", "Content-Length: 4", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        head("POST", "/complete", "Content-Length: 99999999999999"),
        head("POST", "/weights", "Content-Length: 99999999999999"),
        head("PUT", "/weights", "Content-Length: 99999999999999"),
        head("PUT", "/weights", "Content-Length: 0"),
        head("PUT", "/complete", "Content-Length: 0"),
        head("GET", "/weights"),
        head("GET", "/health", *(f"H{i}: x" for i in range(200))),
        head("GET", "/health", "A: " + "x" * 70_000),
        head("GET", "/health x", version="HTTP/1.1"),
        head("GET", "/health", version="HTTP/9.9"),
        head("GET", "/health", version="HTTP/é"),
        head("GET", "/health", version="HTTP/1.1.1.1"),
        head("GET", "/health", version="XTTP/1.1"),
        b"GET\r\n\r\n", b"A B C D E\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET /x\r\n\r\n",
    ]  # fmt: skip
    return found


def without_proof() -> list[bytes]:
    """Requests of clients that know no token: whatever they ask is refused."""
    given = ["", "x", "é", "é" * 64, "\xff\xfe", "0" * 64, "Bearer x", "0" * 60_000, "\t", "١" * 64, "0" * 63 + "é"]
    found = []
    for authorization in given:
        header = f"Authorization: {authorization}"
        for method, path in (("GET", "/health"), ("POST", "/complete"), ("POST", "/weights"), ("PUT", "/weights")):
            found += [sent(method, path, b"", header), sent(method, path, json.dumps(GOOD).encode(), header)]
        found.append(sent("GET", "/health", b"", header, header))
    return found


def damaged(rng: random.Random, whole: list[bytes], count: int) -> list[bytes]:
    """Copies with bytes changed, cut out, doubled or appended."""
    found = []
    for _ in range(count):
        text = bytearray(rng.choice(whole)[:5000])
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(len(text) + 1)
            text[place : place + rng.choice((0, 0, 1, 9))] = rng.choice(
                (b"", b"\0", b"\r\n", b"\xff", b" ", rng.randbytes(8), bytes(text[: rng.randrange(len(text) + 1)]))
            )
        found.append(bytes(text[:20_000]))
    return found


def status_of(connected: socket.socket, request: bytes) -> int | None:
    """Of the first answer; None when there was none."""
    connected.settimeout(30)
    answer = b""
    try:
        connected.sendall(request)
        connected.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # it was cut off: what it said before that may be read
    try:
        while part := connected.recv(1 << 16):
            answer += part
    except TimeoutError:
        raise
    except OSError:
        pass
    connected.close()
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.") else None


def raw(servers: RolloutServers) -> socket.socket:
    address = servers.meeting.address(0)
    if not isinstance(address, str):
        return socket.create_connection(address)
    connected = socket.socket(socket.AF_UNIX)
    connected.connect(address)
    return connected


def test_hostile_requests(each, asked, tiny_base):
    """Each wrong request is answered with 4xx; after all of them the same process completes as before."""
    model = load_model(tiny_base)
    weights = full_weights(model)
    before, pid = client(each).complete(asked, weights, 40, 1.0, 1.0), process(each).pid
    rng = random.Random(7)
    tensors = [[name, SAFETENSORS[t.dtype], list(t.shape)] for name, t in weights]
    bodies = wrong_completions(model.config.vocab_size)
    with_token = [("POST", "/complete", body) for body in bodies]
    with_token += [("POST", "/weights", body) for body in wrong_weights(tensors)]
    with_token += [("PUT", "/weights", b"x" * n) for n in (0, 1, 10**6)]
    counts: Counter[str] = Counter()
    answers: Counter[int | None] = Counter()
    bad = []

    def tally(kind: str, request: bytes, connected: socket.socket, certain: bool) -> None:
        status = status_of(connected, request)
        counts[kind] += 1
        answers[status] += 1
        # What chance made may be no request at all, or one that is right.
        fine = 400 <= (status or 0) < 500 or (not certain and status in (None, 200))
        if not fine:
            bad.append((kind, status, request[:300]))

    for request in without_proof() + wrong_heads():
        tally("without the token", request, raw(each), True)
    for request in damaged(rng, without_proof() + wrong_heads(), 150):
        tally("without the token, damaged", request, raw(each), False)
    for method, path, body in with_token:
        connection = proved(each)
        authorization = f"Authorization: {connection.authorization}"
        tally("with the token", sent(method, path, body, authorization), connection.sock, True)
    for request in wrong_heads():
        connection = proved(each)
        first, _, rest = request.partition(b"\r\n")
        request = first + f"\r\nAuthorization: {connection.authorization}\r\n".encode() + rest
        tally("with the token, wrong heads", request, connection.sock, True)
    for body in damaged(rng, [json.dumps(GOOD | {"version": 40}).encode()], 150):
        connection = proved(each)
        request = sent("POST", "/complete", body, f"Authorization: {connection.authorization}")
        tally("with the token, damaged", request, connection.sock, False)
    print(f"{sum(counts.values())} requests: {dict(counts)}; statuses {dict(answers)}")
    assert not bad
    assert sum(counts.values()) >= 500 and min(counts.values()) >= 50
    assert process(each).poll() is None and process(each).pid == pid
    assert client(each).complete(asked, [], 40, 1.0, 1.0) == before


def test_it_ends_with_its_input(tiny_base, asked):
    """At once, and a trainer that still asks is told in a sentence."""
    with Crew() as crew, RolloutServers(crew, order(tiny_base), [(None, None)]) as found:
        client(found).wait()
        process(found).stdin.close()
        assert process(found).wait(10) == 0
        for listening in found.sockets:
            listening.close()
        started = time.monotonic()
        with pytest.raises(UserError, match="start_seconds"):
            Servers(found.meeting, 0.5).complete(asked, [], 1, 1.0, 1.0)
        assert time.monotonic() - started < 10
        directory = found.meeting.directory
    assert not directory.exists()
