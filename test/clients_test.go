package test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/redis/rueidis"

	"wscast/test/harness"
)

// What every client publishes on the channel "clients", in this order.
var (
	textMessage   = []byte("héllo")
	binaryMessage = []byte("\x00\xff\r\n")
)

// expectBoth: a WebSocket client has received what a Redis client published.
func expectBoth(c *harness.Client) {
	c.ExpectText(string(textMessage))
	c.ExpectBinary(binaryMessage)
}

// What the programs in node and python print. One connection pings, is refused an unknown command, and publishes both messages; another has
// subscribed to the channel and to a pattern, so three receivers are counted with the WebSocket client.
var printed = fmt.Sprintf(`ping PONG
error ERR unknown command
message clients %x
pmessage clients %x
message clients %x
pmessage clients %x
receivers 3 3
`, textMessage, textMessage, binaryMessage, binaryMessage)

func TestNodeRedis(t *testing.T) {
	runClient(t, harness.Find(t, "node", "nodejs"), nodeProgram(t, "node-redis.mjs"), "2", "3")
}

func TestIoredis(t *testing.T) {
	runClient(t, harness.Find(t, "node", "nodejs"), nodeProgram(t, "ioredis.mjs"), "2")
}

func TestRedisPy(t *testing.T) {
	// Debian's python3, which is the one that the package python3-redis is for.
	const python = "/usr/bin/python3"
	major := strings.TrimSpace(harness.Run(t, harness.Find(t, python, "python3"), "-c", "import redis; print(redis.__version__.split('.')[0])"))
	protocols := []string{"2"}
	if len(major) > 1 || major >= "5" {
		protocols = append(protocols, "3")
	}
	runClient(t, python, "python/redis-py.py", protocols...)
}

func nodeProgram(t *testing.T, name string) string {
	t.Helper()
	if _, err := os.Stat("node/node_modules/.package-lock.json"); err != nil {
		t.Fatal("the Node.js modules are not installed: run test/install-deps, or npm ci in test/node")
	}
	return filepath.Join("node", name)
}

func runClient(t *testing.T, interpreter, program string, protocols ...string) {
	t.Helper()
	d := harness.Start(t)
	for _, protocol := range protocols {
		t.Run("RESP"+protocol, func(t *testing.T) {
			c := harness.Dial(t, d.WebSocketURL("clients"))
			if got := harness.Run(t, interpreter, program, d.PublishSocket(), protocol); got != printed {
				t.Errorf("%s prints\n%s\nexpected\n%s", program, got, printed)
			}
			expectBoth(c)
		})
	}
}

func TestGoRedis(t *testing.T) {
	d := harness.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	for _, protocol := range []int{2, 3} {
		t.Run(fmt.Sprint("RESP", protocol), func(t *testing.T) {
			c := harness.Dial(t, d.WebSocketURL("clients"))
			r := redis.NewClient(&redis.Options{Network: "unix", Addr: d.PublishSocket(), Protocol: protocol, MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeAuto}})
			defer r.Close()
			if pong, err := r.Ping(ctx).Result(); pong != "PONG" || err != nil {
				t.Fatalf("PING: %q %v", pong, err)
			}
			if err := r.Do(ctx, "NOSUCH").Err(); err == nil || !strings.HasPrefix(err.Error(), "ERR unknown command") {
				t.Errorf("NOSUCH: %v", err)
			}
			s := r.Subscribe(ctx, "clients")
			defer s.Close()
			if err := s.PSubscribe(ctx, "cli*"); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, ok := goRedisReceive(t, ctx, s).(*redis.Subscription); !ok {
					t.Fatal("received something before the confirmation of a subscription")
				}
			}
			for _, message := range [][]byte{textMessage, binaryMessage} {
				if n, err := r.Publish(ctx, "clients", message).Result(); n != 3 || err != nil {
					t.Errorf("PUBLISH: %d %v, expected 3 receivers", n, err)
				}
				for _, pattern := range []string{"", "cli*"} {
					got, ok := goRedisReceive(t, ctx, s).(*redis.Message)
					if !ok || got.Channel != "clients" || got.Pattern != pattern || got.Payload != string(message) {
						t.Errorf("received %v, expected %q by pattern %q", got, message, pattern)
					}
				}
			}
			expectBoth(c)
			// Pipelined: one write, as many answers.
			answers, err := r.Pipelined(ctx, func(p redis.Pipeliner) error {
				for i := range 100 {
					p.Publish(ctx, "clients", fmt.Sprint(i))
				}
				return nil
			})
			if err != nil || len(answers) != 100 {
				t.Errorf("a pipeline: %d answers, %v", len(answers), err)
			}
			for i := range 100 {
				c.ExpectText(fmt.Sprint(i))
			}
			if channels, err := r.PubSubChannels(ctx, "cli*").Result(); err != nil || len(channels) != 1 || channels[0] != "clients" {
				t.Errorf("PUBSUB CHANNELS: %q %v", channels, err)
			}
			if info, err := r.Info(ctx).Result(); err != nil || !strings.Contains(info, "# Server\r\n") {
				t.Errorf("INFO: %.100q %v", info, err)
			}
		})
	}
}

func goRedisReceive(t *testing.T, ctx context.Context, s *redis.PubSub) any {
	t.Helper()
	got, err := s.Receive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestRueidis(t *testing.T) {
	d := harness.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	for _, protocol := range []int{2, 3} {
		t.Run(fmt.Sprint("RESP", protocol), func(t *testing.T) {
			c := harness.Dial(t, d.WebSocketURL("clients"))
			r, err := rueidis.NewClient(rueidis.ClientOption{
				InitAddress:       []string{d.PublishSocket()},
				DialCtxFn:         dialUnix,
				ForceSingleClient: true,
				AlwaysRESP2:       protocol == 2,
				// Client-side caching is by CLIENT TRACKING, which needs RESP3; with it rueidis opens with it.
				DisableCache: protocol == 2,
			})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if pong, err := r.Do(ctx, r.B().Ping().Build()).ToString(); pong != "PONG" || err != nil {
				t.Fatalf("PING: %q %v", pong, err)
			}
			if err := r.Do(ctx, r.B().Arbitrary("NOSUCH").Build()).Error(); err == nil || !strings.Contains(err.Error(), "unknown command") {
				t.Errorf("NOSUCH: %v", err)
			}

			// A dedicated connection, since Receive has no sign of when it has subscribed.
			s, release := r.Dedicate()
			defer release()
			messages := make(chan rueidis.PubSubMessage, 10)
			subscribed := make(chan string, 10)
			ended := s.SetPubSubHooks(rueidis.PubSubHooks{
				OnMessage:      func(m rueidis.PubSubMessage) { messages <- m },
				OnSubscription: func(s rueidis.PubSubSubscription) { subscribed <- s.Channel },
			})
			for _, command := range []rueidis.Completed{s.B().Subscribe().Channel("clients").Build(), s.B().Psubscribe().Pattern("cli*").Build()} {
				if err := s.Do(ctx, command).Error(); err != nil {
					t.Fatal(err)
				}
				select {
				case <-subscribed:
				case err := <-ended:
					t.Fatal(err)
				case <-ctx.Done():
					t.Fatal("no confirmation of a subscription")
				}
			}
			for _, message := range [][]byte{textMessage, binaryMessage} {
				n, err := r.Do(ctx, r.B().Publish().Channel("clients").Message(rueidis.BinaryString(message)).Build()).AsInt64()
				if n != 3 || err != nil {
					t.Errorf("PUBLISH: %d %v, expected 3 receivers", n, err)
				}
				for _, pattern := range []string{"", "cli*"} {
					select {
					case got := <-messages:
						if got.Channel != "clients" || got.Pattern != pattern || got.Message != string(message) {
							t.Errorf("received %v, expected %q by pattern %q", got, message, pattern)
						}
					case err := <-ended:
						t.Fatal(err)
					case <-ctx.Done():
						t.Fatalf("did not receive %q by pattern %q", message, pattern)
					}
				}
			}
			expectBoth(c)
		})
	}
}

func dialUnix(ctx context.Context, path string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
	return d.DialContext(ctx, "unix", path)
}

func TestRedisCli(t *testing.T) {
	cli := harness.Find(t, "redis-cli", "redis-tools")
	d := harness.Start(t)
	for _, protocol := range []string{"-2", "-3"} {
		t.Run(protocol, func(t *testing.T) {
			c := harness.Dial(t, d.WebSocketURL("clients"))
			subscriber := harness.Launch(t, cli, "-s", d.PublishSocket(), protocol, "subscribe", "clients")
			subscriber.Await("subscribe\nclients\n1\n")
			run := func(args ...string) string {
				t.Helper()
				return harness.Run(t, cli, append([]string{"-s", d.PublishSocket(), protocol}, args...)...)
			}
			if got := run("publish", "clients", string(textMessage)); got != "2\n" {
				t.Errorf("publish prints %q, expected 2 receivers", got)
			}
			// -x takes the last argument from standard input.
			if got := harness.RunInput(t, bytes.NewReader(binaryMessage), cli, "-s", d.PublishSocket(), protocol, "-x", "publish", "clients"); got != "2\n" {
				t.Errorf("publish -x prints %q, expected 2 receivers", got)
			}
			expectBoth(c)
			subscriber.Await("message\nclients\n" + string(textMessage) + "\n")
			subscriber.Await("message\nclients\n" + string(binaryMessage))
			if got := run("nosuch"); !strings.HasPrefix(got, "ERR unknown command") {
				t.Errorf("nosuch prints %q", got)
			}
			if got := run("pubsub", "numsub", "clients"); !strings.HasPrefix(got, "clients") {
				t.Errorf("pubsub numsub prints %q", got)
			}
			if got := run("info", "server"); !strings.Contains(got, "# Server") {
				t.Errorf("info server prints %q", got)
			}
		})
	}
	t.Run("interactive", func(t *testing.T) {
		c := harness.Dial(t, d.WebSocketURL("clients"))
		shell := harness.Launch(t, cli, "-s", d.PublishSocket())
		shell.Send("PUBLISH clients one\nPING\nPUBLISH clients \"two words\"\n")
		shell.CloseInput()
		if code, output := shell.Wait(); code != 0 || output != "1\nPONG\n1\n" {
			t.Errorf("exit code %d, output %q", code, output)
		}
		c.ExpectText("one")
		c.ExpectText("two words")
	})
}

func TestRedisBenchmark(t *testing.T) {
	benchmark := harness.Find(t, "redis-benchmark", "redis-tools")
	d := harness.Start(t)
	c := harness.Dial(t, d.WebSocketURL(""))
	got := harness.Run(t, benchmark, "-s", d.PublishSocket(), "-n", "20000", "-P", "16", "-q", "publish", "default", "hello")
	if !strings.Contains(got, "requests per second") || strings.Contains(got, "WARNING") || strings.Contains(got, "rror") {
		t.Errorf("redis-benchmark prints %q", got)
	}
	for range 20000 {
		c.ExpectText("hello")
	}
}

func TestNetcat(t *testing.T) {
	nc := harness.Find(t, "nc", "netcat-openbsd")
	d := harness.Start(t)
	c := harness.Dial(t, d.WebSocketURL("clients"))
	// -N half-closes after the input, and nc ends when the daemon has answered and closed.
	if got := harness.RunInput(t, strings.NewReader("PUBLISH clients hello\n"), nc, "-U", "-N", d.PublishSocket()); got != ":1\r\n" {
		t.Errorf("nc prints %q, expected :1", got)
	}
	c.ExpectText("hello")
	// Without -N nc stays until the daemon closes, as it does after QUIT.
	if got := harness.RunInput(t, strings.NewReader("PUBLISH clients 'two words'\nNOSUCH\nQUIT\n"), nc, "-U", d.PublishSocket()); !strings.HasPrefix(got, ":1\r\n-ERR unknown command") || !strings.HasSuffix(got, "\r\n+OK\r\n") {
		t.Errorf("nc prints %q", got)
	}
	c.ExpectText("two words")

	subscriber := harness.Launch(t, nc, "-U", d.PublishSocket())
	subscriber.Send("SUBSCRIBE clients\n")
	subscriber.Await("*3\r\n$9\r\nsubscribe\r\n$7\r\nclients\r\n:1\r\n")
	harness.RunInput(t, strings.NewReader("PUBLISH clients hello\n"), nc, "-U", "-N", d.PublishSocket())
	subscriber.Await("*3\r\n$7\r\nmessage\r\n$7\r\nclients\r\n$5\r\nhello\r\n")
}

// Clients of Redis give ids as further arguments: what is published again is answered, and does not come again.
func TestIDs(t *testing.T) {
	d := harness.Start(t)
	c := harness.Dial(t, d.WebSocketURL("clients"))
	cli := harness.Find(t, "redis-cli", "redis-tools")
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	r := redis.NewClient(&redis.Options{Network: "unix", Addr: d.PublishSocket(), MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeAuto}})
	defer r.Close()
	const python = `import redis, sys
r = redis.Redis(unix_socket_path=sys.argv[1])
print(r.execute_command("PUBLISH", "clients", sys.argv[2], "ID", sys.argv[3]))`
	for name, publish := range map[string]func(message, id string) string{
		"redis-cli": func(message, id string) string {
			return harness.Run(t, cli, "-s", d.PublishSocket(), "publish", "clients", message, "id", id)
		},
		"go-redis": func(message, id string) string {
			n, err := r.Do(ctx, "PUBLISH", "clients", message, "ID", id).Int()
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintln(n)
		},
		"redis-py": func(message, id string) string {
			return harness.Run(t, harness.Find(t, "/usr/bin/python3", "python3"), "-c", python, d.PublishSocket(), message, id)
		},
	} {
		for range 3 {
			if got := publish("by "+name, name); got != "1\n" {
				t.Errorf("%s prints %q, expected one receiver", name, got)
			}
		}
		c.ExpectText("by " + name)
		if got := publish("by "+name+", once more", "other clients' "+name); got != "1\n" {
			t.Errorf("%s prints %q, expected one receiver", name, got)
		}
		c.ExpectText("by " + name + ", once more")
	}
	// What one of them has published no other does.
	if n, err := r.Do(ctx, "PUBLISH", "clients", "again", "ID", "redis-cli").Int(); n != 1 || err != nil {
		t.Error(n, err)
	}
	if n, err := r.Publish(ctx, "clients", "the end").Result(); n != 1 || err != nil {
		t.Error(n, err)
	}
	c.ExpectText("the end")
}
