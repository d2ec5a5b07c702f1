"""usage: python3 redis-py.py SOCKET 2|3: publishes and subscribes with redis-py and prints what clients_test.go expects."""

import sys

import redis

path, protocol = sys.argv[1:]
# redis-py speaks RESP3 from 5.0 on; Debian 12 has 4.3, which does not know the option.
options = {"protocol": 3} if protocol == "3" else {}
publisher = redis.Redis(unix_socket_path=path, **options)
print("ping", "PONG" if publisher.ping() else "nothing")
try:
    publisher.execute_command("NOSUCH", "thing")
except redis.ResponseError as error:
    # redis-py takes the ERR off.
    print("error", "ERR " + str(error)[:15])

subscriber = redis.Redis(unix_socket_path=path, **options).pubsub()
subscriber.subscribe("clients")
subscriber.psubscribe("cli*")
for _ in range(2):
    confirmation = subscriber.get_message(timeout=60)
    assert confirmation["type"] in ("subscribe", "psubscribe"), confirmation

receivers = [publisher.publish("clients", message) for message in ("héllo".encode(), b"\x00\xff\r\n")]
for _ in range(4):
    message = subscriber.get_message(timeout=60)
    print(message["type"], message["channel"].decode(), message["data"].hex())
print("receivers", *receivers)
subscriber.unsubscribe()
subscriber.punsubscribe()
subscriber.close()
publisher.close()
