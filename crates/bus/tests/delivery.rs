//! The bus against a real nats-server.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use strongroom_bus::{Bus, BusConfig, ConnectError, ConsumerSpec, Outgoing, consume};
use strongroom_testkit::{Nats, wait_for_async};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(30);

async fn connect(url: String) -> Result<Bus, ConnectError> {
    let config = BusConfig {
        url,
        ..BusConfig::default()
    };
    Bus::connect(&config, "test").await
}

async fn bus(server: &Nats) -> Bus {
    let bus = connect(server.url()).await.unwrap();
    bus.ensure_streams().await.unwrap();
    bus
}

fn work(id: &str) -> Outgoing {
    Outgoing {
        subject: "work.dump.default".into(),
        message_id: id.into(),
        content_type: "application/json",
        traceparent: None,
        body: id.as_bytes().to_vec(),
    }
}

fn spec(ack_wait: Duration, concurrency: usize) -> ConsumerSpec {
    ConsumerSpec {
        stream: "WORK",
        durable: "dump-default".into(),
        filter_subject: "work.dump.default".into(),
        ack_wait,
        concurrency,
    }
}

#[tokio::test]
async fn the_same_message_id_is_stored_once() {
    let server = Nats::start().unwrap();
    let bus = bus(&server).await;
    for result in bus.publish(vec![work("a"), work("b"), work("a")]).await {
        result.unwrap();
    }
    assert_eq!(bus.queued_work().await, Some(2));
}

#[tokio::test]
async fn no_more_messages_are_handled_at_once_than_there_are_hands() {
    let server = Nats::start().unwrap();
    let bus = bus(&server).await;
    bus.publish((0..30).map(|n| work(&n.to_string())).collect()).await;
    let (now, most, done) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
    );
    let stop = CancellationToken::new();
    let consuming = tokio::spawn({
        let (bus, stop, now, most, done) = (bus.clone(), stop.clone(), now.clone(), most.clone(), done.clone());
        async move {
            consume(&bus, &spec(Duration::from_secs(30), 3), &stop, |delivery| {
                let (now, most, done) = (now.clone(), most.clone(), done.clone());
                async move {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    now.fetch_sub(1, Ordering::SeqCst);
                    delivery.ack().await;
                    done.fetch_add(1, Ordering::SeqCst);
                }
            })
            .await;
        }
    });
    wait_for_async("all messages", SOON, || async {
        (done.load(Ordering::SeqCst) == 30).then_some(())
    })
    .await
    .unwrap();
    stop.cancel();
    consuming.await.unwrap();
    assert!(most.load(Ordering::SeqCst) <= 3);
    wait_for_async("an empty queue", SOON, || async {
        (bus.queued_work().await == Some(0)).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_message_whose_consumer_died_comes_again_and_one_that_is_refused_waits_as_long_as_it_was_told() {
    let server = Nats::start().unwrap();
    let bus = bus(&server).await;
    bus.publish(vec![work("a")]).await;
    let times = Arc::new(std::sync::Mutex::new(Vec::new()));
    let stop = CancellationToken::new();
    let consuming = tokio::spawn({
        let (bus, stop, times) = (bus.clone(), stop.clone(), times.clone());
        async move {
            consume(&bus, &spec(Duration::from_secs(1), 1), &stop, |delivery| {
                let times = times.clone();
                async move {
                    times.lock().unwrap().push(std::time::Instant::now());
                    match delivery.deliveries() {
                        1 => {} // as if the consumer had died
                        2 => delivery.retry_after(Duration::from_secs(2)).await,
                        _ => delivery.ack().await,
                    }
                }
            })
            .await;
        }
    });
    wait_for_async("three deliveries", SOON, || async {
        (times.lock().unwrap().len() == 3).then_some(())
    })
    .await
    .unwrap();
    wait_for_async("an empty queue", SOON, || async {
        (bus.queued_work().await == Some(0)).then_some(())
    })
    .await
    .unwrap();
    stop.cancel();
    consuming.await.unwrap();
    let times = times.lock().unwrap().clone();
    assert!(
        times[1] - times[0] >= Duration::from_millis(900),
        "after the acknowledgement time"
    );
    assert!(times[2] - times[1] >= Duration::from_millis(1900), "after the delay");
}

#[tokio::test]
async fn acknowledged_messages_survive_the_death_of_the_server() {
    let server = Nats::start().unwrap();
    let bus = bus(&server).await;
    for result in bus.publish((0..50).map(|n| work(&n.to_string())).collect()).await {
        result.unwrap();
    }
    server.kill().unwrap();
    server.restart().unwrap();
    let queued = wait_for_async("the stream", SOON, || bus.queued_work()).await.unwrap();
    assert_eq!(queued, 50);
}

/// A server that says it is version 2.9.10, as Debian 12's is.
#[tokio::test]
async fn a_server_that_is_too_old_is_refused_with_what_to_do() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                let info = r#"INFO {"server_id":"A","server_name":"a","version":"2.9.10","proto":1,"go":"go1.19","host":"127.0.0.1","port":4222,"headers":true,"max_payload":1048576,"jetstream":true}"#;
                connection.write_all(format!("{info}\r\n").as_bytes()).await?;
                let mut buffer = [0; 4096];
                loop {
                    let read = connection.read(&mut buffer).await?;
                    if read == 0 {
                        return std::io::Result::Ok(());
                    }
                    if buffer[..read].windows(4).any(|w| w == b"PING") {
                        connection.write_all(b"PONG\r\n").await?;
                    }
                }
            });
        }
    });
    let refused = connect(url).await.unwrap_err().to_string();
    assert!(refused.contains("2.9.10") && refused.contains("upgrade"), "{refused}");
}

#[tokio::test]
async fn a_server_without_jetstream_is_refused_with_what_to_do() {
    let port = strongroom_testkit::free_port().unwrap();
    let binary = strongroom_testkit::tool("nats-server").unwrap();
    let _server =
        strongroom_testkit::Process::start(&binary, ["-a", "127.0.0.1", "-p", &port.to_string()], [("A", "b")])
            .unwrap();
    let url = format!("nats://127.0.0.1:{port}");
    let refused = connect(url).await.unwrap_err().to_string();
    assert!(refused.contains("JetStream"), "{refused}");
}

#[tokio::test]
async fn user_and_password_of_the_url_are_shown_to_the_server() {
    let server =
        Nats::start_with("authorization { users: [ { user: strongroom, password: \"p@ss word\" } ] }").unwrap();
    let url = |userinfo: &str| server.url().replace("nats://", &format!("nats://{userinfo}@"));
    connect(url("strongroom:p%40ss%20word")).await.unwrap();
    assert!(connect(url("strongroom:wrong")).await.is_err());
}
