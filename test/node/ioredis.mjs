// usage: node ioredis.mjs SOCKET 2: publishes and subscribes with ioredis and prints what clients_test.go expects.
import Redis from 'ioredis';

const [path] = process.argv.slice(2);
const connect = () => new Redis(path, { retryStrategy: null })
	.on('error', (error) => { console.error(error); process.exit(1); });

const publisher = connect();
console.log('ping', await publisher.ping());
await publisher.call('NOSUCH', 'thing').catch((error) => console.log('error', error.message.slice(0, 19)));

const subscriber = connect();
let left = 4;
let all;
const received = new Promise((resolve) => { all = resolve; });
const print = (what, channel, message) => {
	console.log(what, channel.toString(), message.toString('hex'));
	if (--left === 0) all();
};
subscriber.on('messageBuffer', (channel, message) => print('message', channel, message));
subscriber.on('pmessageBuffer', (pattern, channel, message) => print('pmessage', channel, message));
await subscriber.subscribe('clients');
await subscriber.psubscribe('cli*');

const receivers = [];
for (const message of [Buffer.from('héllo'), Buffer.from([0x00, 0xff, 0x0d, 0x0a])]) {
	receivers.push(await publisher.publish('clients', message));
}
await received;
console.log('receivers', ...receivers);
await subscriber.unsubscribe('clients');
await subscriber.punsubscribe('cli*');
await subscriber.quit();
await publisher.quit();
