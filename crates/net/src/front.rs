//! Both ports of a process, with what stands before their services.
//!
//! Beside the wheel: masters and workers build it from their settings, and serve.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use tokio::sync::watch;
use tower::{Service, ServiceExt, service_fn};

use crate::{
    answer::{Body, boxed},
    door::Names,
    keeper::Keeper,
    ports::{OpenEnded, Ports, deadline, in_time},
    serve::{Accept, serve},
};

/// What stands before the two ports of a process.
#[derive(Clone, Debug)]
pub struct Front {
    /// Who may connect, to both together.
    pub keeper: Keeper,
    /// Where they are reached.
    pub ports: Ports,
    /// Further names that the HTTP port answers to.
    pub names: Names,
    /// The gRPC calls that stream their requests.
    pub open_ended: OpenEnded,
}

impl Front {
    /// Serves both until `stop` becomes true, then lets the requests in flight end. Dropped, it ends all connections at once.
    pub async fn serve<A, G, H, B>(self, grpc: (A, G), http: (A, H), stop: watch::Receiver<bool>)
    where
        A: Accept,
        G: Service<Request<tonic::body::Body>, Response = Response<tonic::body::Body>, Error = Infallible> + Clone + Send + 'static,
        G::Future: Send,
        H: Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        H::Future: Send,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (web, calls) = (self.before_http(http.1), self.before_grpc(grpc.1));
        let Self { keeper, open_ended, .. } = self;
        let calls = serve(grpc.0, calls, keeper.clone(), open_ended, stop.clone());
        // Nothing of the HTTP port streams what it is sent.
        let web = serve(http.0, web, keeper, OpenEnded::default(), stop);
        tokio::join!(calls, web);
    }

    /// The service of the HTTP port.
    pub fn before_http<H, B>(
        &self,
        service: H,
    ) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + use<H, B>
    where
        H: Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        H::Future: Send,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (ports, names) = (Arc::new(self.ports.clone()), Arc::new(self.names.clone()));
        service_fn(move |request: Request<Body>| {
            let refused = ports.refuse_by_http(&request).or_else(|| names.refuse(&request));
            let service = service.clone();
            async move {
                match refused {
                    Some(answer) => Ok(answer),
                    None => service.oneshot(request).await.map(|answer| answer.map(boxed)),
                }
            }
        })
    }

    /// The service of the gRPC port.
    pub fn before_grpc<G>(
        &self,
        service: G,
    ) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + use<G>
    where
        G: Service<Request<tonic::body::Body>, Response = Response<tonic::body::Body>, Error = Infallible> + Clone + Send + 'static,
        G::Future: Send,
    {
        let ports = Arc::new(self.ports.clone());
        service_fn(move |request: Request<Body>| {
            let (refused, span) = (ports.refuse_by_grpc(&request), deadline(request.headers()));
            let service = service.clone();
            async move {
                match refused {
                    Some(answer) => Ok(answer),
                    None => in_time(span, service.oneshot(request.map(tonic::body::Body::new))).await,
                }
            }
        })
    }
}
