"""A ZooKeeper client that knows nothing of this project but znode paths.

It prints a line of JSON for each change of what it watches, and answers orders
that come as lines of JSON. `foreign.py watch HOSTS` is that client;
`foreign.py relay LISTEN TARGET` forwards one TCP port to another.
"""
import asyncio
import json
import os
import sys
import threading

out_lock = threading.Lock()


def say(**line):
    with out_lock:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def text(data):
    return "" if data is None else data.decode("utf-8", "replace")


class Foreign:
    def __init__(self, hosts):
        from kazoo.client import KazooClient
        self.zk = KazooClient(hosts=hosts, timeout=6.0, randomize_hosts=False)
        self.locks = {}
        self.nodes = set()

    def start(self):
        self.zk.start(timeout=20)
        self.watch("/config/primary_node")
        self.zk.ChildrenWatch("/nodes", self.see_nodes)
        say(started=True)

    def watch(self, path):
        def changed(data, stat):
            if stat is None:
                say(path=path, gone=True)
            else:
                say(path=path, value=text(data), mtime=stat.mtime, zxid=stat.mzxid, version=stat.version)
        self.zk.DataWatch(path, changed)

    def see_nodes(self, names):
        for name in sorted(set(names) - self.nodes):
            self.nodes.add(name)
            self.watch("/nodes/%s/routerstate" % name)
            self.watch("/nodes/%s/keepalive" % name)

    def carry_out(self, order):
        op, path = order["op"], order.get("path")
        data = bytes.fromhex(order["hex"]) if "hex" in order else order.get("value", "").encode()
        if op == "auth":
            return self.zk.add_auth("digest", order["value"])
        if op == "set":
            return self.zk.set(path, data).version
        if op == "get":
            found, stat = self.zk.get(path)
            return {"value": text(found), "hex": found.hex(), "version": stat.version, "mtime": stat.mtime,
                    "ephemeral": stat.ephemeralOwner != 0}
        if op == "exists":
            return self.zk.exists(path) is not None
        if op == "create":
            return self.zk.create(path, data, makepath=True, ephemeral=order.get("ephemeral", False),
                                  sequence=order.get("sequence", False))
        if op == "delete":
            self.zk.delete(path, recursive=order.get("recursive", False))
            return None
        if op == "children":
            return sorted(self.zk.get_children(path))
        if op == "lock":
            lock = self.zk.Lock(path, "a foreign client")
            if not lock.acquire(timeout=order.get("timeout", 20)):
                raise RuntimeError("not acquired")
            self.locks[path] = lock
            return lock.node
        if op == "unlock":
            self.locks.pop(path).release()
            return None
        raise ValueError("unknown order " + op)

    def answer(self, order):
        try:
            say(reply=order["id"], result=self.carry_out(order))
        except Exception as e:  # told to whoever asked
            say(reply=order["id"], error="%s: %s" % (type(e).__name__, e))

    def serve(self):
        for line in sys.stdin:
            threading.Thread(target=self.answer, args=(json.loads(line),), daemon=True).start()
        self.zk.stop()


async def relay(listen, target):
    def split(a):
        host, port = a.rsplit(":", 1)
        return host.strip("[]"), int(port)

    async def pump(reader, writer):
        try:
            while True:
                data = await reader.read(65536)
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def accept(reader, writer):
        try:
            back_reader, back_writer = await asyncio.open_connection(*split(target))
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, back_writer), pump(back_reader, writer))

    host, port = split(listen)
    server = await asyncio.start_server(accept, host, port)
    say(started=True)
    async with server:
        await server.serve_forever()


if sys.argv[1] == "relay":
    asyncio.run(relay(sys.argv[2], sys.argv[3]))
else:
    client = Foreign(sys.argv[2])
    client.start()
    client.serve()
    os._exit(0)
