// usage: node node-redis.mjs SOCKET 2|3: publishes and subscribes with node-redis and prints what clients_test.go expects.
import { createClient } from 'redis';

const [path, protocol] = process.argv.slice(2);
const connect = () => createClient({ socket: { path, reconnectStrategy: false }, RESP: Number(protocol) })
	.on('error', (error) => { console.error(error); process.exit(1); })
	.connect();

const publisher = await connect();
console.log('ping', await publisher.ping());
await publisher.sendCommand(['NOSUCH', 'thing']).catch((error) => console.log('error', error.message.slice(0, 19)));

const subscriber = await connect();
let left = 4;
let all;
const received = new Promise((resolve) => { all = resolve; });
const print = (what) => (message, channel) => {
	console.log(what, channel.toString(), message.toString('hex'));
	if (--left === 0) all();
};
await subscriber.subscribe('clients', print('message'), true);
await subscriber.pSubscribe('cli*', print('pmessage'), true);

const receivers = [];
for (const message of [Buffer.from('héllo'), Buffer.from([0x00, 0xff, 0x0d, 0x0a])]) {
	receivers.push(await publisher.publish('clients', message));
}
await received;
console.log('receivers', ...receivers);
await subscriber.unsubscribe('clients');
await subscriber.pUnsubscribe('cli*');
await subscriber.close();
await publisher.close();
